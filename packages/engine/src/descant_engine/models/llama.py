"""The Llama architecture: Llama 2 and 3, SmolLM2, Mistral; Qwen's models vary it."""

from torch import Tensor, nn

from descant_engine.config import ModelShape
from descant_engine.layers.attention import Attention
from descant_engine.layers.embedding import Embedding, LmHead
from descant_engine.layers.linear import GateUpLinear, QkvLinear, ResidualLinear
from descant_engine.layers.norm import RmsNorm
from descant_engine.layers.rotary import Rotary


class LlamaAttention(nn.Module):
    def __init__(self, shape: ModelShape, layer: int, rotary: Rotary) -> None:
        super().__init__()
        self._head_dim = shape.head_dim
        self._num_heads = [shape.num_q_heads, shape.num_kv_heads, shape.num_kv_heads]
        self.qkv_proj = QkvLinear(shape)
        self.attention = Attention(layer, shape.head_dim, rotary)
        q_width = shape.num_q_heads * shape.head_dim
        self.o_proj = ResidualLinear(q_width, {"o_proj": shape.hidden_size}, bias=shape.output_bias)

    def forward(self, hidden: Tensor, positions: Tensor) -> Tensor:
        heads: Tensor = self.qkv_proj(hidden).unflatten(-1, (-1, self._head_dim))
        q, k, v = heads.split(self._num_heads, dim=-2)
        q, k = self.norm_heads(q, k)
        attended: Tensor = self.o_proj(self.attention(q, k, v, positions))
        return attended

    def norm_heads(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Llama has no norms on the heads."""
        return q, k


class LlamaMlp(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_up_proj = GateUpLinear(shape)
        self.down_proj = ResidualLinear(shape.intermediate_size, {"down_proj": shape.hidden_size}, bias=shape.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down_proj(self.gate_up_proj(hidden))
        return output


class LlamaLayer(nn.Module):
    attention_type: type[LlamaAttention] = LlamaAttention

    def __init__(self, shape: ModelShape, layer: int, rotary: Rotary) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = self.attention_type(shape, layer, rotary)
        self.post_attention_layernorm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = LlamaMlp(shape)

    def forward(self, hidden: Tensor, residual: Tensor | None, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream is hidden + residual; the next norm adds them."""
        hidden, residual = self.input_layernorm.add(hidden, residual)
        hidden = self.self_attn(hidden, positions)
        hidden, residual = self.post_attention_layernorm.add(hidden, residual)
        return self.mlp(hidden), residual


class LlamaModel(nn.Module):
    def __init__(self, shape: ModelShape, layer_type: type[LlamaLayer]) -> None:
        super().__init__()
        self.embed_tokens = Embedding(shape.vocab_size, shape.hidden_size)
        rotary = Rotary(shape.head_dim, shape.max_position, shape.rope)
        self.layers = nn.ModuleList(layer_type(shape, layer, rotary) for layer in range(shape.num_layers))
        self.norm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden: Tensor = self.embed_tokens(input_ids)
        residual: Tensor | None = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, positions)
        return self.norm.add(hidden, residual)[0]


class LlamaForCausalLM(nn.Module):
    layer_type: type[LlamaLayer] = LlamaLayer

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.model = LlamaModel(shape, self.layer_type)
        tied_to = self.model.embed_tokens if shape.tie_word_embeddings else None
        self.lm_head = LmHead(shape.vocab_size, shape.hidden_size, tied_to)

    @staticmethod
    def place_of(name: str) -> str | None:
        """Embedding models are published without their head, and without the prefix that goes with it."""
        return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """[num_tokens], [num_tokens] -> [num_tokens, hidden_size]; within `step_context`."""
        hidden: Tensor = self.model(input_ids, positions)
        return hidden

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden_size] -> [n, vocab_size] in the model's dtype"""
        logits: Tensor = self.lm_head(hidden)
        return logits
