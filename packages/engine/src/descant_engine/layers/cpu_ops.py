"""The operations in torch, for the CPU. Every dispatch costs microseconds, so they are few, and whatever is the same
for all layers is computed once per step.
"""

from collections.abc import Callable
from threading import Thread

import torch
from torch import Tensor
from torch.nn import functional as F

from descant_engine.forward_context import StepContext, current_step
from descant_engine.layers.cpu_attention import AttentionPlan, LayerRows, attend
from descant_engine.layers.cpu_lora import CpuLora
from descant_engine.layers.ops import LoraGroup, Product

TYPICAL_NUM_TOKENS = 8
"""oneDNN lays weights out for about so many rows; any number works."""


class CpuOps:
    """Keeps the plan of the step at hand. One thread, one step at a time."""

    def __init__(self) -> None:
        keep_mkl_serial()
        self._step: StepContext | None = None
        self._attention: AttentionPlan | None = None
        self._rows: tuple[LayerRows, ...] = ()
        self._turns: tuple[Tensor, Tensor] | None = None
        self._lora = CpuLora()

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        if not _has_packed_products(weight.dtype):
            return lambda x: F.linear(x, weight, bias)
        # A layout made for the processor's vector units: 1.5 to 2 times faster than row-major for few tokens.
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_NUM_TOKENS)
        linear: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: linear(x, packed, bias, "none", [], "")

    def residual_product(self, weight: Tensor, bias: Tensor | None) -> Product:
        return self.product(weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        residual = residual.add_(x)
        return F.rms_norm(residual, weight.shape, weight, eps), residual

    def rotary(self, q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        self._begin_step()
        if self._turns is None:
            cos, sin = cos_sin[positions].to(q.dtype).unsqueeze(1).chunk(2, dim=-1)
            self._turns = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
        cos, sin = self._turns
        for heads in (q, k):
            swapped = heads.roll(heads.shape[-1] // 2, -1)
            heads.mul_(cos).addcmul_(swapped, sin)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def rotary_attention(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, scale: float
    ) -> Tensor:
        self.rotary(q, k, positions, cos_sin)
        return self.attention(layer, q, k, v, scale)

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        step = self._begin_step()
        if self._attention is None:
            self._attention = AttentionPlan.of(step.attention, step.kv_caches[0], q.dtype)
            self._attention.clear_fresh_blocks(step.kv_caches)
        return attend(self._attention, self._rows[layer], q, k, v, scale)

    def lora_product(self, group: LoraGroup, product: Product, x: Tensor) -> Tensor:
        lora = current_step().lora
        assert lora is not None
        return self._lora.add(group, lora, x, product(x))

    def _begin_step(self) -> StepContext:
        """Forgets the plan of the step before, if the layer calling is the first of a new one."""
        step = current_step()
        if step is not self._step:
            if self._step is None or step.kv_caches is not self._step.kv_caches:
                self._rows = tuple(LayerRows.of(cache) for cache in step.kv_caches)
            self._step, self._attention, self._turns = step, None, None
        return step


def keep_mkl_serial() -> None:
    """Leaves OpenMP's threads to oneDNN. The products that MKL gets are small (adapters' ranks); with a team of its own
    it took ten times as long, for waiting.

    torch sets both libraries' threads at once, but MKL's number is the process's and OpenMP's the calling thread's: set
    by a thread that then ends, it reaches MKL alone.
    """
    setter = Thread(target=torch.set_num_threads, args=(1,))
    setter.start()
    setter.join()


def _has_packed_products(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
