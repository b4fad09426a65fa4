"""LoRA's second half inside the activation that reads its layer's output: nothing is written to be read again.

For long chunks, where the output of gate and up is the largest tensor of a layer, and adding to it in memory costs more
than both halves of LoRA.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.lora_segments import LoraSegments, load_segment
from descant_kernels.lora_tables import LoraTables, ProjectionGroup, alignment, check_tables, tile_rows
from descant_kernels.partial_sums import load_sum
from descant_kernels.tuning import ACTIVATION_BLOCK_OUT, ACTIVATION_CHUNK, LORA_BLOCK_RANK, activation_warps


def lora_expand_silu_mul(
    partials: Tensor, tables: LoraTables, layer: int, group: ProjectionGroup, segments: LoraSegments, gate_up: Tensor
) -> Tensor:
    """silu(gate) * up with [gate | up] = gate_up + what `lora_expand` makes of the same arguments; rounded once.

    Args:
        partials: what `lora_shrink` returned for the same tables, layer, group and segments.
        group: two modules of equal width.
        gate_up: [num_tokens, 2 * width], rows contiguous.

    Returns:
        [num_tokens, width], contiguous, of gate_up's dtype.
    """
    check_tables(gate_up, tables, group)
    splits, _, num_tokens, max_rank = partials.shape
    width = group.out_features[0]
    if group.out_features != (width, width) or gate_up.shape != (num_tokens, 2 * width):
        raise ValueError(f"gate_up must be [{num_tokens}, 2 x {group.out_features}], got {list(gate_up.shape)}")
    out = torch.empty((num_tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    blocks = ACTIVATION_CHUNK // ACTIVATION_BLOCK_OUT
    grid = (triton.cdiv(width, ACTIVATION_CHUNK), len(segments.words))
    _expand_silu_mul_kernel[grid](
        out,
        gate_up,
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
        width,
        gate_up.stride(0),
        SPLITS=splits,
        MAX_RANK=max_rank,
        MAX_TILES=tables.b_offsets.shape[-1],
        RANK_TILE=tables.rank_tile,
        ALIGNED=alignment(width),
        SEGMENT=segments.segment_size,
        BLOCK_RANK=LORA_BLOCK_RANK,
        BLOCK_OUT=ACTIVATION_BLOCK_OUT,
        BLOCKS=blocks,
        num_warps=activation_warps(segments.segment_size),
        num_stages=2,
    )
    return out


@triton.jit
def _add_expanded(
    output,
    shrunk_rows,
    is_member,
    split_stride,
    pool,
    tiles,
    rank,
    scaling,
    width,
    column,
    is_column,
    SPLITS: tl.constexpr,
    RANK_TILE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
):
    """output [SEGMENT, BLOCK_OUT] float32 plus what lora_b makes of the shrunk tokens."""
    acc = tl.zeros_like(output)
    for first in range(0, rank, BLOCK_RANK):
        row = first + tl.arange(0, BLOCK_RANK)
        shrunk = load_sum(shrunk_rows + row, is_member & (row < rank), split_stride, SPLITS)
        b_rows = tile_rows(pool, tiles, row, row < rank, width, RANK_TILE, ALIGNED)[:, None]
        b_tile = tl.load(b_rows + column, mask=(row < rank)[:, None] & is_column, other=0.0)
        acc = tl.dot(shrunk.to(b_tile.dtype), b_tile, acc, input_precision="ieee")
    return output + scaling * acc


@triton.jit
def _store_activated(target, gate, up, mask):
    tl.store(target, (gate * tl.sigmoid(gate) * up).to(target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["layer", "first_module", "num_tokens"])
def _expand_silu_mul_kernel(
    out,
    gate_up,
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
    width,
    stride,
    SPLITS: tl.constexpr,
    MAX_RANK: tl.constexpr,
    MAX_TILES: tl.constexpr,
    RANK_TILE: tl.constexpr,
    ALIGNED: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    start, length, slot = load_segment(segments, tl.program_id(1))
    if length == 0:
        return
    entry = (slot * num_layers + layer) * num_modules + first_module
    # Of rank 0 is also the base.
    gate_rank = tl.load(lora_ranks + entry, mask=slot >= 0, other=0)
    up_rank = tl.load(lora_ranks + entry + 1, mask=slot >= 0, other=0)
    gate_scaling = tl.load(scalings + entry, mask=slot >= 0, other=0.0)
    up_scaling = tl.load(scalings + entry + 1, mask=slot >= 0, other=0.0)

    member = tl.arange(0, SEGMENT)
    is_member = (member < length)[:, None]
    token = tl.load(token_order + start + member, mask=member < length, other=0)
    source, target = gate_up + (token * stride)[:, None], out + (token * width)[:, None]
    split_stride = num_tokens.to(tl.int64) * (2 * MAX_RANK)
    gate_shrunk_rows = partials + (token * MAX_RANK)[:, None]
    up_shrunk_rows = gate_shrunk_rows + num_tokens.to(tl.int64) * MAX_RANK
    gate_tiles = b_offsets + entry * MAX_TILES
    up_tiles = gate_tiles + MAX_TILES
    # The first ranks are summed once for all columns; most adapters have no others.
    row = tl.arange(0, BLOCK_RANK)
    is_gate, is_up = row < gate_rank, row < up_rank
    dtype: tl.constexpr = pool.dtype.element_ty
    gate_shrunk = load_sum(gate_shrunk_rows + row, is_member & is_gate, split_stride, SPLITS).to(dtype)
    up_shrunk = load_sum(up_shrunk_rows + row, is_member & is_up, split_stride, SPLITS).to(dtype)
    gate_rows = tile_rows(pool, gate_tiles, row, is_gate, width, RANK_TILE, ALIGNED)[:, None]
    up_rows = tile_rows(pool, up_tiles, row, is_up, width, RANK_TILE, ALIGNED)[:, None]
    # Counted in blocks, so that the compiler sees how columns are aligned.
    begin = tl.program_id(0) * BLOCKS
    end = tl.minimum(begin + BLOCKS, tl.cdiv(width, BLOCK_OUT))
    if tl.maximum(gate_rank, up_rank) <= BLOCK_RANK:
        # A loop of its own: with another loop inside, loads would not be begun ahead.
        for block in range(begin, end):
            column = (block * BLOCK_OUT + tl.arange(0, BLOCK_OUT))[None, :]
            is_column = column < width
            mask = is_member & is_column
            gate = tl.load(source + column, mask=mask, other=0.0).to(tl.float32)
            up = tl.load(source + width + column, mask=mask, other=0.0).to(tl.float32)
            gate_b = tl.load(gate_rows + column, mask=is_gate[:, None] & is_column, other=0.0)
            up_b = tl.load(up_rows + column, mask=is_up[:, None] & is_column, other=0.0)
            gate += gate_scaling * tl.dot(gate_shrunk, gate_b, input_precision="ieee")
            up += up_scaling * tl.dot(up_shrunk, up_b, input_precision="ieee")
            _store_activated(target + column, gate, up, mask)
    else:
        for block in range(begin, end):
            column = (block * BLOCK_OUT + tl.arange(0, BLOCK_OUT))[None, :]
            is_column = column < width
            mask = is_member & is_column
            gate = tl.load(source + column, mask=mask, other=0.0).to(tl.float32)
            up = tl.load(source + width + column, mask=mask, other=0.0).to(tl.float32)
            gate = _add_expanded(
                gate, gate_shrunk_rows, is_member, split_stride, pool, gate_tiles, gate_rank, gate_scaling,
                width, column, is_column, SPLITS, RANK_TILE, ALIGNED, BLOCK_RANK,
            )  # fmt: skip
            up = _add_expanded(
                up, up_shrunk_rows, is_member, split_stride, pool, up_tiles, up_rank, up_scaling,
                width, column, is_column, SPLITS, RANK_TILE, ALIGNED, BLOCK_RANK,
            )  # fmt: skip
            _store_activated(target + column, gate, up, mask)
