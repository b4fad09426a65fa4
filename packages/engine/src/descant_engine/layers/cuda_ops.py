"""The operations on a GPU: dense products from cuBLAS, everything else from `descant_kernels`."""

from functools import partial

from torch import Tensor
from torch.nn import functional as F

import descant_kernels as kernels
from descant_engine.forward_context import LoraInputs, current_step
from descant_engine.layers.ops import LoraGroup, Product

PREFILL_SEGMENT_SIZE = 64
DECODE_SEGMENT_SIZE = 16
"""Tokens of one adapter that a LoRA kernel's program takes at once."""


class CudaOps:
    """Keeps the adapter segments of the step at hand. One stream, one step at a time."""

    def __init__(self) -> None:
        self._segmented: tuple[LoraInputs, kernels.LoraSegments] | None = None

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        return partial(F.linear, weight=weight, bias=bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return kernels.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return kernels.add_rms_norm(x, residual, weight, eps)

    def rotary(self, q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        kernels.rotary(q, k, positions, cos_sin)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return kernels.silu_mul(gate_up)

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        step = current_step()
        cache, inputs = step.kv_caches[layer], step.attention
        if k.stride() != v.stride():  # a model that norms its keys has them in a tensor of their own
            k, v = k.contiguous(), v.contiguous()
        kernels.kv_write(k, v, cache.keys, cache.values, inputs.slot_mapping)
        output = kernels.paged_attention(
            q,
            cache.keys,
            cache.values,
            inputs.block_tables,
            inputs.query_start_loc,
            inputs.seq_lens,
            scale,
            inputs.max_query_len,
            inputs.max_seq_len,
        )
        return output.flatten(1)

    def add_lora(self, group: LoraGroup, x: Tensor, output: Tensor) -> Tensor:
        lora = current_step().lora
        assert lora is not None
        segments = self._segments(lora)
        projections = kernels.ProjectionGroup(int(group.modules[0]), group.widths)
        shrunk = kernels.lora_shrink(x, lora.tables, group.layer, projections, segments)
        kernels.lora_expand(shrunk, lora.tables, group.layer, projections, segments, output)
        return output

    def _segments(self, lora: LoraInputs) -> kernels.LoraSegments:
        if self._segmented is None or self._segmented[0] is not lora:
            inputs = current_step().attention
            size = DECODE_SEGMENT_SIZE if inputs.max_query_len == 1 else PREFILL_SEGMENT_SIZE
            segments = kernels.segment_tokens(lora.token_adapter_slot, len(inputs.seq_lens), size)
            self._segmented = lora, segments
        return self._segmented[1]
