"""What the LoRA layers' tables say of one slot: where its adapter's tiles lie in the pool, its ranks and scalings."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from descant_engine.adapters.manifest import ModuleLora, TargetModule
from descant_engine.cache.adapter_layout import AdapterLayout, TilePlacement
from descant_engine.forward_context import LoraTables

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AdapterScalars:
    """What does not depend on where the adapter lies."""

    lora_ranks: npt.NDArray[np.int32]
    """[layers, modules]; 0 where nothing is adapted."""
    scalings: npt.NDArray[np.float32]
    modules: frozenset[TargetModule]
    """Adapted in any layer."""

    @classmethod
    def of(cls, modules: tuple[ModuleLora, ...], num_layers: int) -> "AdapterScalars":
        ranks = np.zeros((num_layers, len(TargetModule)), dtype=np.int32)
        scalings = np.zeros(ranks.shape, dtype=np.float32)
        places = [module.layer for module in modules], [module.module for module in modules]
        ranks[places] = [module.lora_rank for module in modules]
        scalings[places] = [module.scaling for module in modules]
        return cls(ranks, scalings, frozenset(module.module for module in modules))


class _TilePlaces(NamedTuple):
    """[tiles] each: where in its table row a tile is written of, its block, its place there."""

    entry: IntArray
    block_index: IntArray
    offset: IntArray


def slot_rows(
    layout: AdapterLayout, scalars: AdapterScalars, block_ids: tuple[int, ...], block_elements: int, tables: LoraTables
) -> tuple[npt.NDArray[Any], ...]:
    """One slot's rows of a_offsets, b_offsets, lora_ranks and scalings, for an adapter that lies in `block_ids`."""
    row_shape = tuple(tables.a_offsets.shape[1:])
    first_elements = np.array(block_ids, dtype=np.int64) * block_elements
    offsets = []
    for places in _tile_places(layout, row_shape):
        row = np.zeros(row_shape, dtype=np.int64)
        row.reshape(-1)[places.entry] = first_elements[places.block_index] + places.offset
        offsets.append(row)
    return *offsets, scalars.lora_ranks, scalars.scalings


@lru_cache(maxsize=256)
def _tile_places(layout: AdapterLayout, row_shape: tuple[int, ...]) -> tuple[_TilePlaces, _TilePlaces]:
    """Of lora_a's tiles and of lora_b's."""
    of_a, of_b = ([tile for tile in layout.tiles if tile.is_lora_a is is_lora_a] for is_lora_a in (True, False))
    return _places(of_a, row_shape), _places(of_b, row_shape)


def _places(tiles: list[TilePlacement], row_shape: tuple[int, ...]) -> _TilePlaces:
    entries = np.ravel_multi_index(np.array([tile[:3] for tile in tiles], dtype=np.int64).T, row_shape)
    return _TilePlaces(
        np.asarray(entries, dtype=np.int64),
        np.array([tile.block_index for tile in tiles], dtype=np.int64),
        np.array([tile.offset for tile in tiles], dtype=np.int64),
    )
