"""Batched LoRA in torch: the adapters of a batch lie one under another in one A and one B, and a mask leaves each token
the rank rows of its own adapter. Two products per packed layer, however many adapters there are.

The first is float32 whatever the model is: for so few rows the fixed cost of a bfloat16 product (oneDNN, 15 us) is
higher than the product itself. The second is as wide as the layer, and made like the layer's own.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from descant_engine.forward_context import LoraInputs, LoraTables
from descant_engine.layers.ops import LoraGroup

AddingProduct = Callable[[Tensor, Tensor], Tensor]
"""(x [T, in], y [T, out]) -> y + x @ weight.T; may change y."""
Prepare = Callable[[Tensor], AddingProduct]
"""From weight [out, in]."""

MAX_BUNDLES = 4
"""Sets of adapters whose matrices are kept at hand; requests that come and go change the set."""


@dataclass(frozen=True, slots=True, eq=False)
class RankRows:
    """Whose the rows of a shrunk activation are. Layers that look alike share one object, and so one mask."""

    slots: Tensor
    """[rank rows] int32"""
    scalings: Tensor
    """[rank rows] float32"""


@dataclass(frozen=True, slots=True)
class GroupTensors:
    """All adapters of the batch on one packed linear layer."""

    lora_a: Tensor
    """[rank rows, in_features] float32: module by module, and within a module adapter by adapter."""
    rows: RankRows
    expand: AddingProduct
    """[T, rank rows] onto [T, sum(widths)]; block-diagonal: a rank row reaches the columns of its own module only."""


class LoraBundle:
    """The matrices of the adapters in `slots`, gathered from the pool layer by layer as they are first asked for."""

    def __init__(self, tables: LoraTables, slots: tuple[int, ...], prepare: Prepare) -> None:
        index = list(slots)
        self._tables, self._slots, self._prepare = tables, slots, prepare
        self._ranks: list[list[list[int]]] = tables.lora_ranks[index].tolist()
        self._scalings: list[list[list[float]]] = tables.scalings[index].tolist()
        self._rank_rows: dict[tuple[tuple[int, int, float], ...], RankRows] = {}
        self._groups: dict[LoraGroup, GroupTensors | None] = {}

    def tensors(self, group: LoraGroup) -> GroupTensors | None:
        """None if no adapter of the batch changes this layer."""
        if group not in self._groups:
            self._groups[group] = self._gather(group)
        return self._groups[group]

    def _gather(self, group: LoraGroup) -> GroupTensors | None:
        lora_a: list[Tensor] = []
        lora_b: list[Tensor] = []
        owners: list[tuple[int, int, float]] = []
        for module, width in zip(group.modules, group.widths, strict=True):
            own_b = [self._tables.pool.new_empty(0, width)]
            for slot, ranks, scalings in zip(self._slots, self._ranks, self._scalings, strict=True):
                lora_rank = ranks[group.layer][module]
                lora_a += self._tiles(self._tables.a_offsets[slot, group.layer, module], lora_rank, group.in_features)
                own_b += self._tiles(self._tables.b_offsets[slot, group.layer, module], lora_rank, width)
                owners.append((slot, lora_rank, scalings[group.layer][module]))
            lora_b.append(torch.cat(own_b))
        if not lora_a:
            return None
        expand = self._prepare(torch.block_diag(*lora_b).T.contiguous())
        return GroupTensors(torch.cat(lora_a).float(), self._shared_rows(tuple(owners)), expand)

    def _tiles(self, offsets: Tensor, lora_rank: int, width: int) -> list[Tensor]:
        tiles = []
        for first, offset in zip(range(0, lora_rank, self._tables.rank_tile), offsets.tolist(), strict=False):
            num_rows = min(self._tables.rank_tile, lora_rank - first)
            tiles.append(self._tables.pool[offset : offset + num_rows * width].view(num_rows, width))
        return tiles

    def _shared_rows(self, owners: tuple[tuple[int, int, float], ...]) -> RankRows:
        """owners: (slot, lora_rank, scaling) from the first row to the last."""
        if owners not in self._rank_rows:
            slots, ranks, scalings = zip(*owners, strict=True)
            repeats = torch.tensor(ranks)
            self._rank_rows[owners] = RankRows(
                torch.tensor(slots, dtype=torch.int32).repeat_interleave(repeats),
                torch.tensor(scalings).repeat_interleave(repeats),
            )
        return self._rank_rows[owners]


class LoraStep:
    """One step's adapters: the matrices of its set, and a mask for each layout of rank rows."""

    def __init__(self, inputs: LoraInputs, bundle: LoraBundle) -> None:
        self.inputs = inputs
        self._bundle = bundle
        self._masks: dict[RankRows, Tensor] = {}

    def add(self, group: LoraGroup, x: Tensor, output: Tensor) -> Tensor:
        """output [T, sum(widths)] += what each token's adapter makes of x [T, in_features], in place."""
        tensors = self._bundle.tensors(group)
        if tensors is None:
            return output
        shrunk = F.linear(x.float(), tensors.lora_a)
        own = torch.mul(shrunk, self._mask(tensors.rows), out=torch.empty_like(shrunk, dtype=x.dtype))
        return tensors.expand(own, output)

    def _mask(self, rows: RankRows) -> Tensor:
        """[T, rank rows] float32: the scaling in the rows of the token's own adapter, 0 elsewhere."""
        if rows not in self._masks:
            self._masks[rows] = (self.inputs.token_adapter_slot[:, None] == rows.slots) * rows.scalings
        return self._masks[rows]


class LoraPlanner:
    """Finds or builds the bundle for a step. What was built for an older version of the tables is dropped."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._step: LoraStep | None = None
        self._bundles: OrderedDict[tuple[int, ...], LoraBundle] = OrderedDict()
        self._built_for: tuple[LoraTables, int] | None = None

    def plan(self, inputs: LoraInputs) -> LoraStep:
        if self._step is None or self._step.inputs is not inputs:
            self._step = LoraStep(inputs, self._bundle(inputs))
        return self._step

    def _bundle(self, inputs: LoraInputs) -> LoraBundle:
        tables, slots = inputs.tables, inputs.slots_in_batch
        if self._built_for is None or self._built_for[0] is not tables or self._built_for[1] != tables.version[0]:
            self._bundles.clear()
            self._built_for = tables, tables.version[0]
        if slots not in self._bundles:
            self._bundles[slots] = LoraBundle(tables, slots, self._prepare)
        self._bundles.move_to_end(slots)
        if len(self._bundles) > MAX_BUNDLES:
            self._bundles.popitem(last=False)
        return self._bundles[slots]
