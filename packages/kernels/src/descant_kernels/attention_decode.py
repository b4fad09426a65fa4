"""Attention of decode steps: one query token against a long cache, split along the keys (Flash-Decoding; Dao, 2023)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.attention_tile import LOG2_E, attend_tile
from descant_kernels.tuning import decode_splits, decode_tiles


def decode_attention(
    out: Tensor,
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    max_seq_len: int,
) -> None:
    """`paged_attention` into `out` for the requests with exactly one query token; others are left alone.

    One program takes a split of a request's keys for all heads that share a KV head; a second kernel joins the splits
    in their order. A request divides its own length by the number of splits, read on the device, so a captured launch
    serves any lengths.
    """
    _, num_q_heads, head_dim = q.shape
    num_kv_heads = key_cache.shape[2]
    num_requests = seq_lens.shape[0]
    num_splits = decode_splits(num_requests, num_kv_heads, max_seq_len)
    num_programs = num_requests * num_kv_heads * num_splits
    tiles = decode_tiles(head_dim, q.dtype, num_q_heads // num_kv_heads, num_programs)
    block_dim = max(16, triton.next_power_of_2(head_dim))
    partial_shape = (num_requests, num_q_heads, num_splits) if num_splits > 1 else (0, 0, 0)
    partial_out = torch.empty((*partial_shape, head_dim), dtype=torch.float32, device=q.device)
    partial_lse = torch.empty(partial_shape, dtype=torch.float32, device=q.device)
    _decode_kernel[(num_kv_heads, num_requests, num_splits)](
        out,
        partial_out,
        partial_lse,
        q,
        key_cache,
        value_cache,
        block_tables,
        query_start_loc,
        seq_lens,
        scale * LOG2_E,
        block_tables.stride(0),
        out.stride(0),
        q.stride(0),
        q.stride(1),
        *key_cache.stride()[:3],
        GROUP=num_q_heads // num_kv_heads,
        KV_BLOCK=key_cache.shape[1],
        HEAD_DIM=head_dim,
        BLOCK_DIM=block_dim,
        BLOCK_ROWS=tiles.block_rows,
        TILE=tiles.tile_keys,
        NUM_SPLITS=num_splits,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    if num_splits > 1:
        _join_splits_kernel[(num_requests, num_q_heads)](
            out,
            partial_out,
            partial_lse,
            query_start_loc,
            seq_lens,
            out.stride(0),
            HEAD_DIM=head_dim,
            BLOCK_DIM=block_dim,
            TILE=tiles.tile_keys,
            NUM_SPLITS=num_splits,
            num_warps=1 if num_splits * block_dim <= 1024 else 4,
        )


@triton.jit
def _split_len(seq_len, NUM_SPLITS: tl.constexpr, TILE: tl.constexpr):
    """Keys of one split: whole tiles, and no more than needed."""
    return tl.cdiv(tl.cdiv(seq_len, NUM_SPLITS), TILE) * TILE


@triton.jit(
    do_not_specialize=["qk_scale", "table_stride"],
    do_not_specialize_on_alignment=["block_tables", "query_start_loc", "seq_lens"],
)
def _decode_kernel(
    out,
    partial_out,
    partial_lse,
    q,
    keys,
    values,
    block_tables,
    query_start_loc,
    seq_lens,
    qk_scale,
    table_stride,
    out_stride_token,
    q_stride_token,
    q_stride_head,
    kv_stride_block,
    kv_stride_token,
    kv_stride_head,
    GROUP: tl.constexpr,
    KV_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    # Heads of a request are neighbours in time as they are in memory.
    kv_head = tl.program_id(0).to(tl.int64)
    request = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    token = tl.load(query_start_loc + request).to(tl.int64)
    query_len = tl.load(query_start_loc + request + 1) - token
    seq_len = tl.load(seq_lens + request)
    split_len = _split_len(seq_len, NUM_SPLITS, TILE)
    first = split * split_len
    if (query_len != 1) | ((first >= seq_len) & (split > 0)):
        return

    rows = tl.arange(0, BLOCK_ROWS)
    head = kv_head * GROUP + rows
    dims = tl.arange(0, BLOCK_DIM)
    mask = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    q_tile = tl.load(q + token * q_stride_token + (head * q_stride_head)[:, None] + dims[None, :], mask=mask, other=0.0)
    block_table = block_tables + request * table_stride
    keys += kv_head * kv_stride_head
    values += kv_head * kv_stride_head
    keys_end = tl.minimum(first + split_len, seq_len)
    last_key = rows * 0 + (keys_end - 1)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    row_max = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    for first_key in range(first, keys_end, TILE):
        acc, row_max, row_sum = attend_tile(
            q_tile, acc, row_max, row_sum, first_key, keys_end, last_key, block_table, keys, values,
            kv_stride_block, kv_stride_token, qk_scale, KV_BLOCK, HEAD_DIM, BLOCK_DIM, TILE, MASKED=True,
        )  # fmt: skip
    # Only a request of length 0 has an empty sum; its output is 0.
    row_sum = tl.where(row_sum > 0, row_sum, 1.0)
    result = acc / row_sum[:, None]
    if NUM_SPLITS == 1:
        place = out + token * out_stride_token + (head * HEAD_DIM)[:, None] + dims[None, :]
        tl.store(place, result.to(out.dtype.element_ty), mask=mask)
    else:
        partial = (request * (tl.num_programs(0) * GROUP) + head) * NUM_SPLITS + split
        tl.store(partial_out + (partial * HEAD_DIM)[:, None] + dims[None, :], result, mask=mask)
        tl.store(partial_lse + partial, row_max + tl.log2(row_sum), mask=rows < GROUP)


@triton.jit(do_not_specialize_on_alignment=["query_start_loc", "seq_lens"])
def _join_splits_kernel(
    out,
    partial_out,
    partial_lse,
    query_start_loc,
    seq_lens,
    out_stride_token,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    token = tl.load(query_start_loc + request).to(tl.int64)
    query_len = tl.load(query_start_loc + request + 1) - token
    if query_len != 1:
        return
    seq_len = tl.load(seq_lens + request)
    splits = tl.arange(0, NUM_SPLITS)
    is_written = splits * _split_len(seq_len, NUM_SPLITS, TILE) < seq_len
    dims = tl.arange(0, BLOCK_DIM)
    partial = (request * tl.num_programs(1) + head) * NUM_SPLITS + splits
    lse = tl.load(partial_lse + partial, mask=is_written, other=float("-inf"))
    mask = is_written[:, None] & (dims < HEAD_DIM)[None, :]
    results = tl.load(partial_out + (partial * HEAD_DIM)[:, None] + dims[None, :], mask=mask, other=0.0)
    highest = tl.max(lse, axis=0)
    weights = tl.exp2(lse - tl.where(seq_len > 0, highest, 0.0))
    total = tl.sum(weights, axis=0)
    joined = tl.sum(results * weights[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    place = out + token * out_stride_token + head * HEAD_DIM + dims
    tl.store(place, joined.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
