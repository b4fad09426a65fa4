"""LoRA, first half: each adapted token times its adapter's lora_a."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.lora_segments import LoraSegments, load_segment
from descant_kernels.lora_tables import LoraTables, ProjectionGroup, alignment, check_tables, tile_rows
from descant_kernels.tuning import LORA_BLOCK_RANK, LORA_RANK_LANES, SHRINK_BLOCK_IN, lora_warps, shrink_split


def lora_shrink(x: Tensor, tables: LoraTables, layer: int, group: ProjectionGroup, segments: LoraSegments) -> Tensor:
    """sum(partials, dim=0)[m, t, :rank] = x[t] @ A[slot(t), layer, first_module + m].T, for each adapted token t.

    Args:
        x: [num_tokens, in_features], rows contiguous.
        layer: index into the tables.

    Returns:
        [splits, modules, num_tokens, max_tiles * rank_tile] float32; what no adapter covers is undefined.
    """
    check_tables(x, tables, group)
    if x.dtype != tables.pool.dtype:
        raise ValueError(f"activations are {x.dtype}, the pool {tables.pool.dtype}: they must agree")
    num_tokens, in_features = x.shape
    max_tiles = tables.a_offsets.shape[-1]
    num_modules = len(group.out_features)
    split_in = shrink_split(in_features, segments.segment_size)
    splits = triton.cdiv(in_features, split_in)
    max_rank = max_tiles * tables.rank_tile
    partials = torch.empty((splits, num_modules, num_tokens, max_rank), dtype=torch.float32, device=x.device)
    lanes = min(LORA_RANK_LANES, triton.cdiv(max_rank, LORA_BLOCK_RANK))
    _shrink_kernel[(len(segments.words), num_modules * lanes, splits)](
        partials,
        x,
        tables.pool,
        tables.a_offsets,
        tables.lora_ranks,
        segments.token_order,
        segments.words,
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
        ALIGNED=alignment(in_features),
        SEGMENT=segments.segment_size,
        BLOCK_RANK=LORA_BLOCK_RANK,
        BLOCK_IN=SHRINK_BLOCK_IN,
        num_warps=lora_warps(segments.segment_size),
        num_stages=3,
    )
    return partials


@triton.jit(do_not_specialize=["layer", "first_module", "num_tokens"])
def _shrink_kernel(
    partials,
    x,
    pool,
    a_offsets,
    lora_ranks,
    token_order,
    segments,
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
    start, length, slot = load_segment(segments, tl.program_id(0))
    if length == 0:
        return
    module = tl.program_id(1) // LANES
    lane = tl.program_id(1) % LANES
    split = tl.program_id(2)
    entry = (slot * num_layers + layer) * num_modules + first_module + module
    rank = tl.load(lora_ranks + entry, mask=slot >= 0, other=0)

    member = tl.arange(0, SEGMENT)
    is_member = member < length
    token = tl.load(token_order + start + member, mask=is_member, other=0)
    slab = split.to(tl.int64) * (tl.num_programs(1) // LANES) + module
    x_rows = x + token * x_stride
    first_in = split * split_in
    end_in = tl.minimum(first_in + split_in, in_features)
    row = lane * BLOCK_RANK + tl.arange(0, BLOCK_RANK)
    # Offsets of ranks that the adapter may not have: one wait for memory less than to see first which it has.
    may_exist = row < tl.where(slot >= 0, MAX_TILES * RANK_TILE, 0)
    a_rows = tile_rows(pool, a_offsets + entry * MAX_TILES, row, may_exist, in_features, RANK_TILE, ALIGNED)
    for _ in range(lane * BLOCK_RANK, rank, LANES * BLOCK_RANK):
        is_row = row < rank
        acc = tl.zeros([SEGMENT, BLOCK_RANK], tl.float32)
        for begin in range(first_in, end_in, BLOCK_IN):
            column = begin + tl.arange(0, BLOCK_IN)
            is_column = (column < end_in)[None, :]
            x_tile = tl.load(x_rows[:, None] + column[None, :], mask=is_member[:, None] & is_column, other=0.0)
            a_tile = tl.load(a_rows[:, None] + column[None, :], mask=is_row[:, None] & is_column, other=0.0)
            acc = tl.dot(x_tile, tl.trans(a_tile), acc, input_precision="ieee")
        target = partials + ((slab * num_tokens + token) * (MAX_TILES * RANK_TILE))[:, None] + row[None, :]
        tl.store(target, acc, mask=is_member[:, None] & is_row[None, :])
        row += LANES * BLOCK_RANK
        a_rows = tile_rows(pool, a_offsets + entry * MAX_TILES, row, row < rank, in_features, RANK_TILE, ALIGNED)
