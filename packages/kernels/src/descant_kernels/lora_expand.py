"""LoRA, second half: the shrunk tokens times their adapter's lora_b: what is to be added to the base layer's output.

Who adds it is the caller's choice: the product itself, which can start from it, or the kernel that reads the output.
"""

import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.lora_segments import LoraSegments, load_segment
from descant_kernels.lora_tables import MAX_PACKED, LoraTables, ProjectionGroup, alignment, check_tables, tile_rows
from descant_kernels.partial_sums import load_sum
from descant_kernels.tuning import EXPAND_BLOCK_OUT, LORA_BLOCK_RANK, expand_chunk, lora_warps


def lora_expand(
    partials: Tensor, tables: LoraTables, layer: int, group: ProjectionGroup, segments: LoraSegments, out: Tensor
) -> None:
    """out[t, columns(m)] = scaling * sum(partials, dim=0)[m, t, :rank] @ B[slot(t), layer, first_module + m].

    Args:
        partials: what `lora_shrink` returned for the same tables, layer, group and segments.
        out: [num_tokens, sum(group.out_features)], rows contiguous, any float dtype; overwritten. Rows of base tokens
            and columns of modules that the adapter leaves alone become 0.
    """
    check_tables(out, tables, group)
    splits, num_modules, num_tokens, max_rank = partials.shape
    widths = group.out_features
    if out.shape != (num_tokens, sum(widths)):
        raise ValueError(f"out must be [{num_tokens}, {sum(widths)}] for columns of {widths}, got {list(out.shape)}")
    padded_widths = (*widths, *(0,) * (MAX_PACKED - num_modules))
    num_segments = len(segments.words)
    chunk = expand_chunk(segments.segment_size, num_segments)
    num_chunks = sum(triton.cdiv(width, chunk) for width in widths)
    _expand_kernel[(num_chunks, num_segments)](
        out,
        partials,
        tables.pool,
        tables.b_offsets,
        tables.lora_ranks,
        tables.scalings,
        segments.token_order,
        segments.words,
        layer,
        group.first_module,
        *tables.b_offsets.shape[1:3],
        num_tokens,
        *padded_widths,
        out.stride(0),
        chunk,
        SPLITS=splits,
        MODULES=num_modules,
        MAX_RANK=max_rank,
        MAX_TILES=tables.b_offsets.shape[-1],
        RANK_TILE=tables.rank_tile,
        ALIGNED=min(alignment(width) for width in widths),
        SEGMENT=segments.segment_size,
        BLOCK_RANK=LORA_BLOCK_RANK,
        BLOCK_OUT=EXPAND_BLOCK_OUT,
        num_warps=lora_warps(segments.segment_size),
        num_stages=3,
    )


@triton.jit(do_not_specialize=["layer", "first_module", "num_tokens", "chunk_width"])
def _expand_kernel(
    out,
    partials,
    pool,
    b_offsets,
    lora_ranks,
    scalings,
    token_order,
    segments,
    layer,
    first_module,
    num_layers,
    num_modules,
    num_tokens,
    width_0,
    width_1,
    width_2,
    out_stride,
    chunk_width,
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
    start, length, slot = load_segment(segments, tl.program_id(1))
    if length == 0:
        return
    chunk = tl.program_id(0)
    second = tl.cdiv(width_0, chunk_width)
    third = second + tl.cdiv(width_1, chunk_width)
    module = (chunk >= second).to(tl.int32) + (chunk >= third).to(tl.int32)
    first_chunk = tl.where(module == 0, 0, tl.where(module == 1, second, third))
    left_of_module = tl.where(module == 0, 0, tl.where(module == 1, width_0, width_0 + width_1))
    width = tl.where(module == 0, width_0, tl.where(module == 1, width_1, width_2))
    # Counted in blocks, so that the compiler sees how columns are aligned.
    begin = (chunk - first_chunk) * (chunk_width // BLOCK_OUT)
    end = tl.minimum(begin + chunk_width // BLOCK_OUT, tl.cdiv(width, BLOCK_OUT))
    split_stride = num_tokens.to(tl.int64) * (MODULES * MAX_RANK)
    member, row = tl.arange(0, SEGMENT), tl.arange(0, BLOCK_RANK)
    entry = (slot * num_layers + layer) * num_modules + first_module + module
    # Of rank 0 is also the base: every product below is of zeros then, and zeros are stored.
    is_adapted = slot >= 0
    rank = tl.load(lora_ranks + entry, mask=is_adapted, other=0)
    scaling = tl.load(scalings + entry, mask=is_adapted, other=0.0)
    is_member = (member < length)[:, None]
    token = tl.load(token_order + start + member, mask=member < length, other=0)
    shrunk_rows = partials + ((module * num_tokens + token) * MAX_RANK)[:, None]
    out_rows = out + (token * out_stride)[:, None] + left_of_module
    tiles = b_offsets + entry * MAX_TILES
    # The first ranks are summed once for all columns; most adapters have no others. What is read of ranks that
    # this adapter does not have is thrown away: to see first which it has would be one more wait for memory.
    may_exist = row < tl.where(is_adapted, MAX_RANK, 0)
    b_rows = tile_rows(pool, tiles, row, may_exist, width, RANK_TILE, ALIGNED)[:, None]
    summed = load_sum(shrunk_rows + row, is_member & may_exist, split_stride, SPLITS)
    shrunk = tl.where(row < rank, summed, 0.0).to(pool.dtype.element_ty)
    if rank <= BLOCK_RANK:
        # A loop of its own: with another loop inside, loads would not be begun ahead.
        for block in range(begin, end):
            column = block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
            is_column = (column < width)[None, :]
            b_tile = tl.load(b_rows + column, mask=(row < rank)[:, None] & is_column, other=0.0)
            acc = tl.dot(shrunk, b_tile, input_precision="ieee")
            tl.store(out_rows + column, (scaling * acc).to(out.dtype.element_ty), mask=is_member & is_column)
    else:
        for block in range(begin, end):
            column = block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
            is_column = (column < width)[None, :]
            b_tile = tl.load(b_rows + column, mask=is_column, other=0.0)
            acc = tl.dot(shrunk, b_tile, input_precision="ieee")
            for first_row in range(BLOCK_RANK, rank, BLOCK_RANK):
                more = first_row + row
                more_shrunk = load_sum(shrunk_rows + more, is_member & (more < rank), split_stride, SPLITS)
                more_rows = tile_rows(pool, tiles, more, more < rank, width, RANK_TILE, ALIGNED)[:, None]
                b_tile = tl.load(more_rows + column, mask=(more < rank)[:, None] & is_column, other=0.0)
                acc = tl.dot(more_shrunk.to(b_tile.dtype), b_tile, acc, input_precision="ieee")
            tl.store(out_rows + column, (scaling * acc).to(out.dtype.element_ty), mask=is_member & is_column)
