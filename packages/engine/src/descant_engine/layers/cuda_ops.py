"""The operations on a GPU: dense products from cuBLAS, everything else from `descant_kernels`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional as F

import descant_kernels as kernels
from descant_engine.forward_context import LoraInputs, current_step
from descant_engine.layers.ops import LoraGroup, Product

RESIDUAL_SPLITS = 2
"""Partial sums of a skinny product that a norm adds up: enough programs to fill the chip."""
PREFILL_SEGMENT_SIZE = 64
DECODE_SEGMENT_SIZE = 16
"""Tokens of one adapter that a LoRA kernel's program takes at once."""


class CudaOps:
    """Keeps the adapter segments of the step at hand. One stream, one step at a time."""

    def __init__(self) -> None:
        self._segmented: tuple[LoraInputs, kernels.LoraSegments] | None = None

    @cached_property
    def _side_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        return partial(F.linear, weight=weight, bias=bias)

    def residual_product(self, weight: Tensor, bias: Tensor | None) -> Product:
        if bias is not None:
            return self.product(weight, bias)

        def partial_sums(x: Tensor) -> Tensor:
            if kernels.can_multiply(len(x), weight, RESIDUAL_SPLITS):
                return kernels.skinny_product(x, weight, RESIDUAL_SPLITS)
            return F.linear(x, weight)

        return partial_sums

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return kernels.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return kernels.add_rms_norm(x, residual, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return kernels.silu_mul(gate_up)

    def rotary_attention(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, scale: float
    ) -> Tensor:
        step = current_step()
        cache, inputs = step.kv_caches[layer], step.attention
        kernels.rotary_kv_write(q, k, v, positions, cos_sin, cache.keys, cache.values, inputs.slot_mapping)
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

    def lora_product(self, group: LoraGroup, product: Product, x: Tensor) -> Tensor:
        lora = current_step().lora
        assert lora is not None
        segments = self._segments(lora)
        projections = kernels.ProjectionGroup(int(group.modules[0]), group.widths)
        with self._beside(x):
            shrunk = kernels.lora_shrink(x, lora.tables, group.layer, projections, segments)
        output = product(x)
        self._join(x)
        total = output[0] if output.dim() == 3 else output  # of partial sums, any one will do
        kernels.lora_expand(shrunk, lora.tables, group.layer, projections, segments, total)
        return output

    @contextmanager
    def _beside(self, x: Tensor) -> Iterator[None]:
        """In a captured graph, what is launched inside runs beside what comes after it, until `_join`. Launched one by
        one, kernels cost the host more than they would gain."""
        if not _is_captured(x):
            yield
            return
        self._side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side_stream):
            yield

    def _join(self, x: Tensor) -> None:
        if _is_captured(x):
            torch.cuda.current_stream().wait_stream(self._side_stream)

    def _segments(self, lora: LoraInputs) -> kernels.LoraSegments:
        if self._segmented is None or self._segmented[0] is not lora:
            inputs = current_step().attention
            size = DECODE_SEGMENT_SIZE if inputs.max_query_len == 1 else PREFILL_SEGMENT_SIZE
            segments = kernels.segment_tokens(lora.token_adapter_slot, len(inputs.seq_lens), size)
            self._segmented = lora, segments
        return self._segmented[1]


def _is_captured(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
