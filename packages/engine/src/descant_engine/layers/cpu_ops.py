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
from descant_engine.layers.cpu_kernels import kernels_for
from descant_engine.layers.cpu_lora import CpuLora
from descant_engine.layers.ops import LoraGroup, Product

TYPICAL_NUM_TOKENS = 8
"""oneDNN lays weights out for about so many rows; any number works."""

MIN_ROWS = 4
"""One row alone takes other paths in oneDNN: its sums are in another order than among others, so that a request alone
would not always get the bits that it gets in a batch, or with drafts. Four times the same row cost no more, or less."""


class CpuOps:
    """Keeps the plan of the step at hand. One thread, one step at a time."""

    def __init__(self) -> None:
        keep_mkl_serial()
        self._step: StepContext | None = None
        self._attention: AttentionPlan | None = None
        self._rows: tuple[LayerRows, ...] = ()
        self._lora = CpuLora()

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        kernels_for(weight.dtype)  # compiled now, while the model is loaded
        if not _has_packed_products(weight.dtype):
            return lambda x: F.linear(x, weight, bias)
        # A layout made for the processor's vector units: 1.5 to 2 times faster than row-major for few tokens.
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_NUM_TOKENS)
        linear: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default

        def product(x: Tensor) -> Tensor:
            if len(x) == 1:
                return linear(x.expand(MIN_ROWS, -1), packed, bias, "none", [], "")[:1]
            return linear(x, packed, bias, "none", [], "")

        return product

    def residual_product(self, weight: Tensor, bias: Tensor | None) -> Product:
        return self.product(weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, width = x.contiguous(), len(weight)
        output = torch.empty_like(x)
        kernels_for(x.dtype).rms_norm(
            x.data_ptr(), weight.data_ptr(), output.data_ptr(), x.numel() // width, width, eps
        )
        return output

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        output = torch.empty_like(x)
        kernels_for(x.dtype).add_rms_norm(
            x.data_ptr(), residual.data_ptr(), weight.data_ptr(), output.data_ptr(), len(x), len(weight), eps
        )
        return output, residual

    def rotary(self, q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """Heads lie side by side; tokens may lie further apart, as in a packed qkv."""
        turn = kernels_for(q.dtype).rotary
        for heads in (q, k):
            turn(heads.data_ptr(), *heads.shape, heads.stride(0), positions.data_ptr(), cos_sin.data_ptr())

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        num_tokens, width = len(gate_up), gate_up.shape[1] // 2
        output = gate_up.new_empty(num_tokens, width)
        kernels_for(gate_up.dtype).silu_mul(gate_up.data_ptr(), output.data_ptr(), num_tokens, width)
        return output

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

    def lora_gated_product(self, group: LoraGroup, product: Product, x: Tensor) -> Tensor:
        return self.silu_mul(self.lora_product(group, product, x))

    def _begin_step(self) -> StepContext:
        """Forgets the plan of the step before, if the layer calling is the first of a new one."""
        step = current_step()
        if step is not self._step:
            if self._step is None or step.kv_caches is not self._step.kv_caches:
                self._rows = tuple(LayerRows.of(cache) for cache in step.kv_caches)
            self._step, self._attention = step, None
        return step


def keep_mkl_serial() -> None:
    """Leaves OpenMP's threads to oneDNN. The products that MKL gets are small (attention's, adapters'); with a team of
    its own it took ten times as long, for waiting.

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
