"""Where an adapter's weights lie in pool blocks: rank tiles, packed into as few blocks as possible.

A linear layer's lora_a [rank, in] is cut into tiles of up to `rank_tile` rows, its lora_b, transposed to [rank, out],
likewise. A tile is contiguous and never straddles blocks. No row is padded: rank 8 takes half of what rank 16 does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from descant_engine.adapters.manifest import AdapterManifest, TargetModule
from descant_engine.config import ModelShape

RANK_TILE = 16
"""Rows of a tile where blocks allow it: the smallest tile of a tensor core."""
TILE_ALIGNMENT = 16
"""Elements. Tiles start at its multiples, so that vector loads are aligned."""


class TilePlacement(NamedTuple):
    """`rows` x `width` elements, row-major, at element `offset` of the adapter's block number `block_index`."""

    layer: int
    module: TargetModule
    tile: int
    """Holds ranks [tile * rank_tile, tile * rank_tile + rows)."""
    is_lora_a: bool
    block_index: int
    offset: int
    rows: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class AdapterLayout:
    """Shared by adapters of one shape, and told apart by identity: it is a key of what is worked out once for each."""

    num_blocks: int
    rank_tile: int
    tiles: tuple[TilePlacement, ...]
    """Sorted by (layer, module, tile), lora_a before lora_b."""


class _Tile(NamedTuple):
    layer: int
    module: TargetModule
    tile: int
    is_lora_b: bool
    rows: int
    width: int


def rank_tile(shape: ModelShape, block_elements: int) -> int:
    """Rows per tile for every adapter of this model: RANK_TILE, halved until the widest tile fits a block.

    Raises:
        ValueError: not even one row fits; the message says which block_size would do.
    """
    widest = max(max(shape.linear_shape(module)) for module in TargetModule)
    rows = RANK_TILE
    while rows > 1 and rows * widest > block_elements:
        rows //= 2
    if widest > block_elements:
        raise ValueError(
            f"block_size is too small for adapters: a block has {block_elements} elements and one row of an adapter up "
            f"to {widest}; use block_size={-(-widest // shape.kv_elements_per_token)} or more"
        )
    return rows


def plan_layout(manifest: AdapterManifest, shape: ModelShape, block_elements: int) -> AdapterLayout:
    """Packs an adapter's tiles. Adapters of one shape share one layout object."""
    ranks = tuple((module.layer, module.module, module.lora_rank) for module in manifest.modules)
    return _pack(ranks, shape, block_elements)


@lru_cache(maxsize=256)
def _pack(ranks: tuple[tuple[int, TargetModule, int], ...], shape: ModelShape, block_elements: int) -> AdapterLayout:
    """First-fit decreasing (Johnson, 1973). Equal tiles follow each other, so each size needs to look only at blocks
    from where its last tile went."""
    rows = rank_tile(shape, block_elements)
    alignment = TILE_ALIGNMENT if block_elements % TILE_ALIGNMENT == 0 else 1
    used: list[int] = []
    placements: list[TilePlacement] = []
    block_index, last_size = 0, 0
    for tile in sorted(_tiles(ranks, shape, rows), key=lambda tile: -tile.rows * tile.width):
        size = -(-tile.rows * tile.width // alignment) * alignment
        block_index = block_index if size == last_size else 0
        while block_index < len(used) and used[block_index] + size > block_elements:
            block_index += 1
        if block_index == len(used):
            used.append(0)
        placements.append(_place(tile, block_index, used[block_index]))
        used[block_index] += size
        last_size = size
    placements.sort(key=lambda tile: (tile.layer, tile.module, tile.tile, not tile.is_lora_a))
    return AdapterLayout(num_blocks=len(used), rank_tile=rows, tiles=tuple(placements))


def _tiles(ranks: tuple[tuple[int, TargetModule, int], ...], shape: ModelShape, rows_per_tile: int) -> Iterator[_Tile]:
    for layer, module, lora_rank in ranks:
        in_features, out_features = shape.linear_shape(module)
        for tile, first in enumerate(range(0, lora_rank, rows_per_tile)):
            rows = min(rows_per_tile, lora_rank - first)
            yield _Tile(layer, module, tile, False, rows, in_features)
            yield _Tile(layer, module, tile, True, rows, out_features)


def _place(tile: _Tile, block_index: int, offset: int) -> TilePlacement:
    return TilePlacement(
        tile.layer, tile.module, tile.tile, not tile.is_lora_b, block_index, offset, tile.rows, tile.width
    )
