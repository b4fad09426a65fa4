"""Qwen 3: Llama with a norm over each query and key head before the rotation."""

from torch import Tensor

from descant_engine.config import ModelShape
from descant_engine.layers.norm import RmsNorm
from descant_engine.layers.rotary import Rotary
from descant_engine.models.llama import LlamaAttention, LlamaForCausalLM, LlamaLayer


class Qwen3Attention(LlamaAttention):
    def __init__(self, shape: ModelShape, layer: int, rotary: Rotary) -> None:
        super().__init__(shape, layer, rotary)
        self.q_norm = RmsNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = RmsNorm(shape.head_dim, shape.rms_norm_eps)

    def norm_heads(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)


class Qwen3Layer(LlamaLayer):
    attention_type = Qwen3Attention


class Qwen3ForCausalLM(LlamaForCausalLM):
    layer_type = Qwen3Layer
