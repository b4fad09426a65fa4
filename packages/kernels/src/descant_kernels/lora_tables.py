"""Batched LoRA (Hu et al., 2021; batched as in Punica, Chen et al., 2023) over rank tiles found by an address table.

Shrink multiplies each segment's tokens by its adapter's lora_a, expand the result by lora_b; each is one launch for a
whole packed projection group. Ranks are exact: a program reads the rows an adapter has and no more. No atomics: shrink
writes one partial sum per split of the input features, expand adds them in their order. This file holds what the two
share: the tables, and the way from a table to a row.
"""

from typing import NamedTuple, Protocol

import triton
import triton.language as tl
from torch import Tensor

MAX_PACKED = 3
ALIGNED_ELEMENTS = 8
"""A tile whose rows are a multiple of this many elements must start at one too: loads take 16 bytes at a time."""


class LoraTables(Protocol):
    """Where the rank tiles of every resident adapter lie.

    An adapted linear layer's lora_a [rank, in] and transposed lora_b [rank, out] are cut into tiles of `rank_tile`
    rows, the last with only what is left, each row-major and contiguous in `pool`.
    """

    @property
    def pool(self) -> Tensor:
        """Flat, of the activations' dtype."""

    @property
    def a_offsets(self) -> Tensor:
        """[num_slots, num_layers, num_modules, max_tiles] int64: element offset into `pool`."""

    @property
    def b_offsets(self) -> Tensor: ...

    @property
    def lora_ranks(self) -> Tensor:
        """[num_slots, num_layers, num_modules] int32; 0 = the adapter leaves the layer alone."""

    @property
    def scalings(self) -> Tensor:
        """[num_slots, num_layers, num_modules] float32"""

    @property
    def rank_tile(self) -> int: ...


class ProjectionGroup(NamedTuple):
    """Linear layers of one input whose outputs lie side by side: (q, k, v), (gate, up), or a single one."""

    first_module: int
    """Module index in the tables; the others of the group follow it."""
    out_features: tuple[int, ...]
    """Width of each module's columns, left to right."""


def alignment(row_elements: int) -> int:
    return ALIGNED_ELEMENTS if row_elements % ALIGNED_ELEMENTS == 0 else 1


def check_tables(activations: Tensor, tables: LoraTables, group: ProjectionGroup) -> None:
    if activations.stride(-1) != 1:
        raise ValueError(f"rows must be contiguous, got strides {activations.stride()}")
    if not 1 <= len(group.out_features) <= MAX_PACKED:
        raise ValueError(f"a projection group has 1 to {MAX_PACKED} modules, got {len(group.out_features)}")
    if not all(t.is_contiguous() for t in (tables.a_offsets, tables.b_offsets, tables.lora_ranks, tables.scalings)):
        raise ValueError("the tables must be contiguous")


@triton.jit
def tile_rows(pool, offsets, rows, is_row, width, RANK_TILE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointer to each rank row. `offsets`: the layer's list of tile offsets."""
    tile = tl.load(offsets + rows // RANK_TILE, mask=is_row, other=0)
    # The compiler can't see how table entries are aligned, and would load element by element.
    return pool + tl.multiple_of(tile + (rows % RANK_TILE).to(tl.int64) * width, ALIGNED)
