"""Batched LoRA on the CPU, straight from the block pool by the address tables: a token costs its own adapter's ranks,
whatever else is in the batch, and nothing is copied or kept.
"""

import torch
from torch import Tensor

from descant_engine.forward_context import LoraInputs, LoraTables
from descant_engine.layers.cpu_kernels import kernels_for
from descant_engine.layers.ops import LoraGroup


class CpuLora:
    """Keeps the addresses of the tables at hand, for they don't change, and those of each layer's row in them."""

    def __init__(self) -> None:
        self._bound: BoundTables | None = None

    def add(self, group: LoraGroup, lora: LoraInputs, x: Tensor, output: Tensor) -> Tensor:
        """output [T, sum(widths)] += what each token's adapter makes of x [T, in_features], in place."""
        if lora.modules.isdisjoint(group.modules):
            return output
        if self._bound is None or self._bound.tables is not lora.tables:
            self._bound = BoundTables(lora.tables)
        x = x.contiguous()
        assert output.is_contiguous()
        self._bound.kernel(
            x.data_ptr(),
            output.data_ptr(),
            len(x),
            lora.token_adapter_slot.data_ptr(),
            *self._bound.addresses,
            *self._bound.group_arguments(group),
        )
        return output


class BoundTables:
    """The kernel's arguments that are the same in every step."""

    def __init__(self, tables: LoraTables) -> None:
        self.tables = tables
        self.kernel = kernels_for(tables.pool.dtype).add_lora
        _, num_layers, self._num_modules, max_tiles = tables.a_offsets.shape
        self.addresses = (
            tables.pool.data_ptr(),
            tables.a_offsets.data_ptr(),
            tables.b_offsets.data_ptr(),
            tables.lora_ranks.data_ptr(),
            tables.scalings.data_ptr(),
            num_layers * self._num_modules,
            max_tiles,
            tables.rank_tile,
        )
        self._groups: dict[LoraGroup, tuple[int, ...]] = {}
        self._pointed_at: list[Tensor] = []

    def group_arguments(self, group: LoraGroup) -> tuple[int, ...]:
        if group not in self._groups:
            modules, widths = torch.tensor([group.modules, group.widths])
            self._pointed_at += modules, widths
            self._groups[group] = (
                group.layer * self._num_modules,
                group.in_features,
                len(group.modules),
                modules.data_ptr(),
                widths.data_ptr(),
            )
        return self._groups[group]
