"""Batched LoRA (Hu et al., 2021; batched as in Punica, Chen et al., 2023) over rank tiles found by an address table.

Shrink multiplies each segment's tokens by its adapter's lora_a, expand the result by lora_b; each is one launch for a
whole packed projection group. Ranks are exact: a program reads the rows an adapter has and no more. No atomics: shrink
writes one partial sum per split of the input features, expand adds them in their order.
"""

from typing import NamedTuple, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.lora_segments import LoraSegments
from descant_kernels.tuning import (
    LORA_BLOCK_RANK,
    LORA_RANK_LANES,
    SHRINK_BLOCK_IN,
    expand_block,
    lora_warps,
    shrink_split,
)

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


def lora_shrink(x: Tensor, tables: LoraTables, layer: int, group: ProjectionGroup, segments: LoraSegments) -> Tensor:
    """sum(partials, dim=0)[m, t, :rank] = x[t] @ A[slot(t), layer, first_module + m].T, for each adapted token t.

    Args:
        x: [num_tokens, in_features], rows contiguous.
        layer: index into the tables.

    Returns:
        [splits, modules, num_tokens, max_tiles * rank_tile] float32; what no adapter covers is undefined.
    """
    _check_tables(x, tables, group)
    num_tokens, in_features = x.shape
    max_tiles = tables.a_offsets.shape[-1]
    num_modules = len(group.out_features)
    split_in = shrink_split(in_features, segments.segment_size)
    splits = triton.cdiv(in_features, split_in)
    max_rank = max_tiles * tables.rank_tile
    partials = torch.empty((splits, num_modules, num_tokens, max_rank), dtype=torch.float32, device=x.device)
    lanes = min(LORA_RANK_LANES, triton.cdiv(max_rank, LORA_BLOCK_RANK))
    _shrink_kernel[(segments.lengths.shape[0], num_modules * lanes, splits)](
        partials,
        x,
        tables.pool,
        tables.a_offsets,
        tables.lora_ranks,
        segments.token_order,
        segments.starts,
        segments.lengths,
        segments.slots,
        layer,
        group.first_module,
        *tables.a_offsets.shape[1:3],
        num_tokens,
        in_features,
        split_in,
        x.stride(0),
        MAX_TILES=max_tiles,
        RANK_TILE=tables.rank_tile,
        LANES=lanes,
        ALIGNED=_alignment(in_features),
        SEGMENT=segments.segment_size,
        BLOCK_RANK=LORA_BLOCK_RANK,
        BLOCK_IN=SHRINK_BLOCK_IN,
        num_warps=lora_warps(segments.segment_size),
        num_stages=3,
    )
    return partials


def lora_expand(
    partials: Tensor, tables: LoraTables, layer: int, group: ProjectionGroup, segments: LoraSegments, out: Tensor
) -> None:
    """out[t, columns(m)] += scaling * sum(partials, dim=0)[m, t, :rank] @ B[slot(t), layer, first_module + m].

    Args:
        partials: what `lora_shrink` returned for the same tables, layer, group and segments.
        out: [num_tokens, sum(group.out_features)], rows contiguous; changed in place. Rows of base tokens and columns
            of modules that the adapter leaves alone are not touched.
    """
    _check_tables(out, tables, group)
    splits, num_modules, num_tokens, max_rank = partials.shape
    widths = group.out_features
    if out.shape != (num_tokens, sum(widths)):
        raise ValueError(f"out must be [{num_tokens}, {sum(widths)}] for columns of {widths}, got {list(out.shape)}")
    padded_widths = (*widths, *(0,) * (MAX_PACKED - num_modules))
    block_out = expand_block(segments.segment_size)
    num_blocks = sum(triton.cdiv(width, block_out) for width in widths)
    _expand_kernel[(segments.lengths.shape[0], num_blocks)](
        out,
        partials,
        tables.pool,
        tables.b_offsets,
        tables.lora_ranks,
        tables.scalings,
        segments.token_order,
        segments.starts,
        segments.lengths,
        segments.slots,
        layer,
        group.first_module,
        *tables.b_offsets.shape[1:3],
        num_tokens,
        *padded_widths,
        out.stride(0),
        SPLITS=splits,
        MODULES=num_modules,
        MAX_RANK=max_rank,
        MAX_TILES=tables.b_offsets.shape[-1],
        RANK_TILE=tables.rank_tile,
        ALIGNED=min(_alignment(width) for width in widths),
        SEGMENT=segments.segment_size,
        BLOCK_RANK=LORA_BLOCK_RANK,
        BLOCK_OUT=block_out,
        num_warps=lora_warps(segments.segment_size),
        num_stages=2,
    )


def _alignment(row_elements: int) -> int:
    return ALIGNED_ELEMENTS if row_elements % ALIGNED_ELEMENTS == 0 else 1


def _check_tables(activations: Tensor, tables: LoraTables, group: ProjectionGroup) -> None:
    if activations.dtype != tables.pool.dtype:
        raise ValueError(f"activations are {activations.dtype}, the pool {tables.pool.dtype}: they must agree")
    if activations.stride(-1) != 1:
        raise ValueError(f"rows must be contiguous, got strides {activations.stride()}")
    if not 1 <= len(group.out_features) <= MAX_PACKED:
        raise ValueError(f"a projection group has 1 to {MAX_PACKED} modules, got {len(group.out_features)}")
    if not all(t.is_contiguous() for t in (tables.a_offsets, tables.b_offsets, tables.lora_ranks, tables.scalings)):
        raise ValueError("the tables must be contiguous")


@triton.jit
def _tile_rows(pool, offsets, rows, is_row, width, RANK_TILE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointer to each rank row. `offsets`: the layer's list of tile offsets."""
    tile = tl.load(offsets + rows // RANK_TILE, mask=is_row, other=0)
    # The compiler can't see how table entries are aligned, and would load element by element.
    return pool + tl.multiple_of(tile + (rows % RANK_TILE).to(tl.int64) * width, ALIGNED)


@triton.jit(do_not_specialize=["layer", "first_module", "num_tokens"])
def _shrink_kernel(
    partials,
    x,
    pool,
    a_offsets,
    lora_ranks,
    token_order,
    starts,
    lengths,
    slots,
    layer,
    first_module,
    num_layers,
    num_modules,
    num_tokens,
    in_features,
    split_in,
    x_stride,
    MAX_TILES: tl.constexpr,
    RANK_TILE: tl.constexpr,
    LANES: tl.constexpr,
    ALIGNED: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    segment = tl.program_id(0)
    # All at once: one wait for memory, not three.
    length, slot, start = tl.load(lengths + segment), tl.load(slots + segment), tl.load(starts + segment)
    if length == 0:
        return
    module = tl.program_id(1) // LANES
    lane = tl.program_id(1) % LANES
    split = tl.program_id(2)
    entry = (slot * num_layers + layer) * num_modules + first_module + module
    rank = tl.load(lora_ranks + entry)

    member = tl.arange(0, SEGMENT)
    is_member = member < length
    token = tl.load(token_order + start + member, mask=is_member, other=0)
    slab = split.to(tl.int64) * (tl.num_programs(1) // LANES) + module
    x_rows = x + token * x_stride
    first_in = split * split_in
    end_in = tl.minimum(first_in + split_in, in_features)
    for first_row in range(lane * BLOCK_RANK, rank, LANES * BLOCK_RANK):
        row = first_row + tl.arange(0, BLOCK_RANK)
        is_row = row < rank
        a_rows = _tile_rows(pool, a_offsets + entry * MAX_TILES, row, is_row, in_features, RANK_TILE, ALIGNED)
        acc = tl.zeros([SEGMENT, BLOCK_RANK], tl.float32)
        for begin in range(first_in, end_in, BLOCK_IN):
            column = begin + tl.arange(0, BLOCK_IN)
            is_column = (column < end_in)[None, :]
            x_tile = tl.load(x_rows[:, None] + column[None, :], mask=is_member[:, None] & is_column, other=0.0)
            a_tile = tl.load(a_rows[:, None] + column[None, :], mask=is_row[:, None] & is_column, other=0.0)
            acc = tl.dot(x_tile, tl.trans(a_tile), acc, input_precision="ieee")
        target = partials + ((slab * num_tokens + token) * (MAX_TILES * RANK_TILE))[:, None] + row[None, :]
        tl.store(target, acc, mask=is_member[:, None] & is_row[None, :])


@triton.jit(do_not_specialize=["layer", "first_module", "num_tokens"])
def _expand_kernel(
    out,
    partials,
    pool,
    b_offsets,
    lora_ranks,
    scalings,
    token_order,
    starts,
    lengths,
    slots,
    layer,
    first_module,
    num_layers,
    num_modules,
    num_tokens,
    width_0,
    width_1,
    width_2,
    out_stride,
    SPLITS: tl.constexpr,
    MODULES: tl.constexpr,
    MAX_RANK: tl.constexpr,
    MAX_TILES: tl.constexpr,
    RANK_TILE: tl.constexpr,
    ALIGNED: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    segment = tl.program_id(0)
    # All at once: one wait for memory, not three.
    length, slot, start = tl.load(lengths + segment), tl.load(slots + segment), tl.load(starts + segment)
    if length == 0:
        return
    block = tl.program_id(1)
    second = tl.cdiv(width_0, BLOCK_OUT)
    third = second + tl.cdiv(width_1, BLOCK_OUT)
    module = (block >= second).to(tl.int32) + (block >= third).to(tl.int32)
    first_block = tl.where(module == 0, 0, tl.where(module == 1, second, third))
    first_column = tl.where(module == 0, 0, tl.where(module == 1, width_0, width_0 + width_1))
    width = tl.where(module == 0, width_0, tl.where(module == 1, width_1, width_2))
    entry = (slot * num_layers + layer) * num_modules + first_module + module
    rank = tl.load(lora_ranks + entry)
    if rank == 0:
        return

    member = tl.arange(0, SEGMENT)
    is_member = member < length
    token = tl.load(token_order + start + member, mask=is_member, other=0)
    column = (block - first_block) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_column = column < width
    acc = tl.zeros([SEGMENT, BLOCK_OUT], tl.float32)
    split_stride = num_tokens.to(tl.int64) * (MODULES * MAX_RANK)
    shrunk_rows = partials + (module * num_tokens + token) * MAX_RANK
    for first_row in range(0, rank, BLOCK_RANK):
        row = first_row + tl.arange(0, BLOCK_RANK)
        is_row = row < rank
        source = shrunk_rows[:, None] + row[None, :]
        is_shrunk = is_member[:, None] & is_row[None, :]
        shrunk = tl.zeros([SEGMENT, BLOCK_RANK], tl.float32)
        for split in range(SPLITS):
            shrunk += tl.load(source + split * split_stride, mask=is_shrunk, other=0.0)
        b_rows = _tile_rows(pool, b_offsets + entry * MAX_TILES, row, is_row, width, RANK_TILE, ALIGNED)
        b_tile = tl.load(b_rows[:, None] + column[None, :], mask=is_row[:, None] & is_column[None, :], other=0.0)
        acc = tl.dot(shrunk.to(b_tile.dtype), b_tile, acc, input_precision="ieee")
    target = out + (token * out_stride)[:, None] + (first_column + column)[None, :]
    mask = is_member[:, None] & is_column[None, :]
    base = tl.load(target, mask=mask, other=0.0).to(tl.float32)
    tl.store(target, (base + tl.load(scalings + entry) * acc).to(out.dtype.element_ty), mask=mask)
