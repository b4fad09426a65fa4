"""Batched LoRA on the CPU, straight from the block pool by the address tables: a token costs its own adapter's ranks,
whatever else is in the batch, and no matrix is kept twice.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from descant_engine.forward_context import LoraInputs, LoraTables
from descant_engine.layers.cpu_kernels import kernels_for
from descant_engine.layers.ops import LoraGroup

LONG_RUN = 256
"""Tokens of one adapter, one after another, that are worth torch's products: they use all cores and cost 20 us each.
Shorter runs go to the kernel."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens [first, last) of a step."""

    first: int
    last: int
    slot: int | None
    """None for the kernel, which looks it up token by token."""


class CpuLora:
    """Keeps at hand what is the same in every step or, for the step it is in, in every layer."""

    def __init__(self) -> None:
        self._bound: BoundTables | None = None
        self._inputs: LoraInputs | None = None
        self._stretches: tuple[Stretch, ...] = ()

    def add(self, group: LoraGroup, lora: LoraInputs, x: Tensor, output: Tensor) -> Tensor:
        """output [T, sum(widths)] += what each token's adapter makes of x [T, in_features], in place."""
        if lora.modules.isdisjoint(group.modules):
            return output
        if self._bound is None or self._bound.tables is not lora.tables:
            self._bound = BoundTables(lora.tables)
        if self._inputs is not lora:
            self._inputs, self._stretches = lora, stretches(lora.token_adapter_slot.tolist())
        for stretch in self._stretches:
            if stretch.slot is None:
                self._bound.add_token_by_token(group, lora, stretch, x.contiguous(), output)
            else:
                here = slice(stretch.first, stretch.last)
                add_in_products(group, lora.tables, stretch.slot, x[here], output[here])
        return output


class BoundTables:
    """The kernel, and those of its arguments that are the same in every step."""

    def __init__(self, tables: LoraTables) -> None:
        self.tables = tables
        self._kernel = kernels_for(tables.pool.dtype).add_lora
        _, num_layers, self._num_modules, max_tiles = tables.a_offsets.shape
        self._arguments = (
            tables.pool.data_ptr(),
            tables.a_offsets.data_ptr(),
            tables.b_offsets.data_ptr(),
            tables.lora_ranks.data_ptr(),
            tables.scalings.data_ptr(),
            num_layers * self._num_modules,
            max_tiles,
            tables.rank_tile,
        )
        self._of_groups: dict[LoraGroup, tuple[int, ...]] = {}
        self._pointed_at: list[Tensor] = []

    def add_token_by_token(
        self, group: LoraGroup, lora: LoraInputs, stretch: Stretch, x: Tensor, output: Tensor
    ) -> None:
        self._kernel(
            x.data_ptr() + stretch.first * x.stride(0) * x.element_size(),
            output.data_ptr() + stretch.first * output.stride(0) * output.element_size(),
            stretch.last - stretch.first,
            lora.token_adapter_slot.data_ptr() + stretch.first * lora.token_adapter_slot.element_size(),
            *self._arguments,
            *self._of_group(group),
        )

    def _of_group(self, group: LoraGroup) -> tuple[int, ...]:
        if group not in self._of_groups:
            modules, widths = torch.tensor([group.modules, group.widths])
            self._pointed_at += modules, widths
            self._of_groups[group] = (
                group.layer * self._num_modules,
                group.in_features,
                len(group.modules),
                modules.data_ptr(),
                widths.data_ptr(),
            )
        return self._of_groups[group]


def stretches(slots: list[int]) -> tuple[Stretch, ...]:
    """The tokens that have adapters: long runs of one slot by themselves, all between them together."""
    found: list[Stretch] = []
    first = 0
    for slot, run in groupby(slots):
        last = first + len(list(run))
        if slot >= 0 and last - first >= LONG_RUN:
            found.append(Stretch(first, last, slot))
        elif slot >= 0 and found and found[-1].slot is None and found[-1].last == first:
            found[-1] = Stretch(found[-1].first, last, None)
        elif slot >= 0:
            found.append(Stretch(first, last, None))
        first = last
    return tuple(found)


def add_in_products(group: LoraGroup, tables: LoraTables, slot: int, x: Tensor, output: Tensor) -> None:
    """What the adapter in `slot` makes of x, added to output."""
    for module, columns in zip(group.modules, output.split(list(group.widths), dim=1), strict=True):
        entry = slot, group.layer, module
        lora_rank = int(tables.lora_ranks[entry])
        if lora_rank:
            lora_a = rank_rows(tables, tables.a_offsets[entry], lora_rank, group.in_features)
            lora_b = rank_rows(tables, tables.b_offsets[entry], lora_rank, columns.shape[1])
            columns.addmm_((x @ lora_a.T).mul_(tables.scalings[entry]), lora_b)


def rank_rows(tables: LoraTables, offsets: Tensor, lora_rank: int, width: int) -> Tensor:
    """[lora_rank, width], put together from its tiles."""
    tiles = []
    for first, offset in zip(range(0, lora_rank, tables.rank_tile), offsets.tolist(), strict=False):
        num_rows = min(tables.rank_tile, lora_rank - first)
        tiles.append(tables.pool[offset : offset + num_rows * width].view(num_rows, width))
    return torch.cat(tiles) if len(tiles) > 1 else tiles[0]
