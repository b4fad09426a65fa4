"""The operations on a GPU: dense products from cuBLAS, everything else from `descant_kernels`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

import descant_kernels as kernels
from descant_engine.forward_context import AttentionInputs, LayerKv, LoraInputs, current_step
from descant_engine.layers.cuda_products import DenseProduct, ResidualProduct
from descant_engine.layers.ops import LoraGroup, Product

PREFILL_SEGMENT_SIZE = 32
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
        return DenseProduct(weight, bias)

    def residual_product(self, weight: Tensor, bias: Tensor | None) -> Product:
        return ResidualProduct(weight, bias)

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
        return self._attend(q[0] if q.dim() == 4 else q, cache, inputs, scale).flatten(1)

    def _attend(self, q: Tensor, cache: LayerKv, inputs: AttentionInputs, scale: float) -> Tensor:
        tables = inputs.block_tables, inputs.query_start_loc, inputs.seq_lens
        longest = inputs.max_query_len, inputs.max_seq_len
        return kernels.paged_attention(q, cache.keys, cache.values, *tables, scale, *longest)

    def lora_product(self, group: LoraGroup, product: Product, x: Tensor) -> Tensor:
        lora = current_step().lora
        assert lora is not None
        assert isinstance(product, DenseProduct)
        if lora.modules.isdisjoint(group.modules):
            return product(x)
        sums = product.room_for_sums(x, extra=1)
        with self._beside(x):
            self._expand(lora, group, self._shrink(lora, group, x), sums[-1])
        product.fill_sums(sums, x)
        self._join(x)
        return sums

    def lora_gated_product(self, group: LoraGroup, product: Product, x: Tensor) -> Tensor:
        """Long chunks have their adapters' part added in the activation: the output is large. Decode has little output
        but waits for memory, so adapters come beside the base."""
        lora = current_step().lora
        assert lora is not None
        if lora.modules.isdisjoint(group.modules) or _is_captured(x):
            return self.silu_mul(self.lora_product(group, product, x))
        shrunk = self._shrink(lora, group, x)
        inputs = lora.tables, group.layer, _projections(group), self._segments(lora)
        return kernels.lora_expand_silu_mul(shrunk, *inputs, product(x))

    def _shrink(self, lora: LoraInputs, group: LoraGroup, x: Tensor) -> Tensor:
        return kernels.lora_shrink(x, lora.tables, group.layer, _projections(group), self._segments(lora))

    def _expand(self, lora: LoraInputs, group: LoraGroup, shrunk: Tensor, out: Tensor) -> None:
        kernels.lora_expand(shrunk, lora.tables, group.layer, _projections(group), self._segments(lora), out)

    @contextmanager
    def _beside(self, x: Tensor) -> Iterator[None]:
        """In a captured graph, what is launched inside may run beside what comes after it, until `_join`. Launched one
        by one, kernels would cost the host more than that gains."""
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
            num_requests = len(current_step().attention.seq_lens)
            segments = kernels.segment_tokens(lora.token_adapter_slot, num_requests, self._segment_size())
            self._segmented = lora, segments
        return self._segmented[1]

    def _segment_size(self) -> int:
        return DECODE_SEGMENT_SIZE if current_step().attention.max_query_len == 1 else PREFILL_SEGMENT_SIZE


def _projections(group: LoraGroup) -> kernels.ProjectionGroup:
    return kernels.ProjectionGroup(int(group.modules[0]), group.widths)


def _is_captured(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
