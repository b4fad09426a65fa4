"""Batched LoRA in torch: the adapters of a batch lie one under another in one A and one B, and a mask gives each token
the rows of its own adapter. A few products per layer, however many adapters there are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from descant_engine.adapter import TargetModule
from descant_engine.forward_context import LoraInputs, LoraTables


@dataclass(frozen=True, slots=True)
class ShardLora:
    """All adapters of the batch on one module of a layer."""

    columns: slice
    """Of the packed layer's output."""
    rank_rows: slice
    """Of the shrunk activations."""
    lora_b: Tensor
    """[rank rows, out_features]"""


@dataclass(frozen=True, slots=True)
class GroupLora:
    """All adapters of the batch on one packed linear layer."""

    lora_a: Tensor
    """[in_features, rank rows], modules one after another, within each the adapters"""
    slots: Tensor
    """[rank rows] int32: whose row it is"""
    scalings: Tensor
    """[rank rows] float32"""
    shards: tuple[ShardLora, ...]


class LoraBundle:
    """The adapters in `slots`, gathered from the pool when a layer first asks; valid for one version of the tables."""

    def __init__(self, tables: LoraTables, slots: tuple[int, ...]) -> None:
        self.tables, self.slots, self.version = tables, slots, tables.version[0]
        self._ranks = tables.lora_ranks[list(slots)].tolist()
        self._groups: dict[tuple[int, tuple[TargetModule, ...]], GroupLora | None] = {}

    def is_for(self, inputs: LoraInputs) -> bool:
        return (
            inputs.tables is self.tables
            and inputs.slots_in_batch == self.slots
            and inputs.tables.version[0] == self.version
        )

    def group(
        self, layer: int, modules: tuple[TargetModule, ...], widths: tuple[int, ...], in_features: int
    ) -> GroupLora | None:
        """None if no adapter of the batch changes this layer."""
        key = (layer, modules)
        if key not in self._groups:
            self._groups[key] = self._gather(layer, modules, widths, in_features)
        return self._groups[key]

    def _gather(
        self, layer: int, modules: tuple[TargetModule, ...], widths: tuple[int, ...], in_features: int
    ) -> GroupLora | None:
        lora_a: list[Tensor] = []
        owners: list[tuple[int, float, int]] = []
        shards: list[ShardLora] = []
        column = row = 0
        for module, width in zip(modules, widths, strict=True):
            lora_b: list[Tensor] = []
            for index, slot in enumerate(self.slots):
                lora_rank = self._ranks[index][layer][module]
                if lora_rank:
                    lora_a += self._tiles(self.tables.a_offsets[slot, layer, module], lora_rank, in_features)
                    lora_b += self._tiles(self.tables.b_offsets[slot, layer, module], lora_rank, width)
                    owners.append((slot, float(self.tables.scalings[slot, layer, module]), lora_rank))
            if lora_b:
                stacked = torch.cat(lora_b)
                shards.append(ShardLora(slice(column, column + width), slice(row, row + len(stacked)), stacked))
                row += len(stacked)
            column += width
        if not shards:
            return None
        repeats = torch.tensor([lora_rank for _, _, lora_rank in owners])
        return GroupLora(
            torch.cat(lora_a).T,
            torch.tensor([slot for slot, _, _ in owners], dtype=torch.int32).repeat_interleave(repeats),
            torch.tensor([scaling for _, scaling, _ in owners]).repeat_interleave(repeats),
            tuple(shards),
        )

    def _tiles(self, offsets: Tensor, lora_rank: int, width: int) -> list[Tensor]:
        tile = self.tables.rank_tile
        tiles = []
        for offset, first in zip(offsets.tolist(), range(0, lora_rank, tile), strict=False):
            num_rows = min(tile, lora_rank - first)
            tiles.append(self.tables.pool[offset : offset + num_rows * width].view(num_rows, width))
        return tiles


class LoraStep:
    """What a step's layers share: the bundle, and for each layout of rank rows the [num_tokens, rank rows] mask."""

    def __init__(self, inputs: LoraInputs, bundle: LoraBundle) -> None:
        self.inputs = inputs
        self._bundle = bundle

    def add(
        self, layer: int, modules: tuple[TargetModule, ...], widths: tuple[int, ...], x: Tensor, output: Tensor
    ) -> Tensor:
        group = self._bundle.group(layer, modules, widths, x.shape[-1])
        if group is None:
            return output
        mask = (self.inputs.token_adapter_slot[:, None] == group.slots) * group.scalings
        shrunk = torch.mm(x, group.lora_a).mul_(mask)
        for shard in group.shards:
            output[:, shard.columns].addmm_(shrunk[:, shard.rank_rows], shard.lora_b)
        return output


class LoraPlanner:
    def __init__(self) -> None:
        self._bundle: LoraBundle | None = None
        self._step: LoraStep | None = None

    def plan(self, inputs: LoraInputs) -> LoraStep:
        if self._step is None or self._step.inputs is not inputs:
            if self._bundle is None or not self._bundle.is_for(inputs):
                self._bundle = LoraBundle(inputs.tables, inputs.slots_in_batch)
            self._step = LoraStep(inputs, self._bundle)
        return self._step
