"""LoRA, second half: the shrunk tokens times their adapter's lora_b, added to the base layer's output."""

import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.lora_segments import LoraSegments
from descant_kernels.lora_tables import MAX_PACKED, LoraTables, ProjectionGroup, alignment, check_tables, tile_rows
from descant_kernels.tuning import LORA_BLOCK_RANK, expand_block, lora_warps


def lora_expand(
    partials: Tensor, tables: LoraTables, layer: int, group: ProjectionGroup, segments: LoraSegments, out: Tensor
) -> None:
    """out[t, columns(m)] += scaling * sum(partials, dim=0)[m, t, :rank] @ B[slot(t), layer, first_module + m].

    Args:
        partials: what `lora_shrink` returned for the same tables, layer, group and segments.
        out: [num_tokens, sum(group.out_features)], rows contiguous; changed in place. Rows of base tokens and columns
            of modules that the adapter leaves alone are not touched.
    """
    check_tables(out, tables, group)
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
        ALIGNED=min(alignment(width) for width in widths),
        SEGMENT=segments.segment_size,
        BLOCK_RANK=LORA_BLOCK_RANK,
        BLOCK_OUT=block_out,
        num_warps=lora_warps(segments.segment_size),
        num_stages=2,
    )


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
        b_rows = tile_rows(pool, b_offsets + entry * MAX_TILES, row, is_row, width, RANK_TILE, ALIGNED)
        b_tile = tl.load(b_rows[:, None] + column[None, :], mask=is_row[:, None] & is_column[None, :], other=0.0)
        acc = tl.dot(shrunk.to(b_tile.dtype), b_tile, acc, input_precision="ieee")
    target = out + (token * out_stride)[:, None] + (first_column + column)[None, :]
    mask = is_member[:, None] & is_column[None, :]
    base = tl.load(target, mask=mask, other=0.0).to(tl.float32)
    tl.store(target, (base + tl.load(scalings + entry) * acc).to(out.dtype.element_ty), mask=mask)
