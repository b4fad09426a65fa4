"""Attention of prefill chunks: requests with more than one query token."""

import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.attention_tile import LOG2_E, attend_tile
from descant_kernels.tuning import prefill_tiles


def prefill_attention(
    out: Tensor,
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    min_query_len: int = 2,
) -> None:
    """`paged_attention` into `out` for the requests with `min_query_len` or more query tokens; others are left alone.

    One program takes a block of query tokens with all heads that share a KV head, so its products are full. The grid is
    an upper bound made from shapes alone: sum over requests of ceil(query_len / block) <= tokens // block + requests.
    """
    num_tokens, num_q_heads, head_dim = q.shape
    num_kv_heads = key_cache.shape[2]
    group_size = num_q_heads // num_kv_heads
    num_requests = seq_lens.shape[0]
    tiles = prefill_tiles(head_dim, q.dtype)
    block_rows = max(tiles.block_rows, triton.next_power_of_2(group_size))
    grid = (num_tokens // (block_rows // group_size) + num_requests, num_kv_heads)
    _prefill_kernel[grid](
        out,
        q,
        key_cache,
        value_cache,
        block_tables,
        query_start_loc,
        seq_lens,
        scale * LOG2_E,
        num_requests,
        block_tables.stride(0),
        out.stride(0),
        q.stride(0),
        q.stride(1),
        *key_cache.stride()[:3],
        GROUP=group_size,
        KV_BLOCK=key_cache.shape[1],
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_ROWS=block_rows,
        TILE=tiles.tile_keys,
        MIN_QUERIES=min_query_len,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


@triton.jit
def _request_of_block(query_start_loc, block, num_requests, BLOCK_QUERIES: tl.constexpr):
    """The last request r with query_start_loc[r] // BLOCK_QUERIES + r <= block: its blocks begin there."""
    low = block * 0
    high = low + num_requests
    while high - low > 1:
        middle = (low + high) // 2
        first_block = tl.load(query_start_loc + middle) // BLOCK_QUERIES + middle
        is_past = first_block > block
        high = tl.where(is_past, middle, high)
        low = tl.where(is_past, low, middle)
    return low


@triton.jit(
    do_not_specialize=["qk_scale", "num_requests", "table_stride"],
    do_not_specialize_on_alignment=["block_tables", "query_start_loc", "seq_lens"],
)
def _prefill_kernel(
    out,
    q,
    keys,
    values,
    block_tables,
    query_start_loc,
    seq_lens,
    qk_scale,
    num_requests,
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
    MIN_QUERIES: tl.constexpr,
):
    BLOCK_QUERIES: tl.constexpr = BLOCK_ROWS // GROUP
    # Late blocks see the most keys: start them first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    request = _request_of_block(query_start_loc, block, num_requests, BLOCK_QUERIES)
    query_start = tl.load(query_start_loc + request)
    query_len = tl.load(query_start_loc + request + 1) - query_start
    first_query = (block - query_start // BLOCK_QUERIES - request) * BLOCK_QUERIES
    if (query_len < MIN_QUERIES) | (first_query >= query_len):
        return

    context_len = tl.load(seq_lens + request) - query_len
    rows = tl.arange(0, BLOCK_ROWS)
    query = first_query + rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    dims = tl.arange(0, BLOCK_DIM)
    mask = ((rows < BLOCK_QUERIES * GROUP) & (query < query_len))[:, None] & (dims < HEAD_DIM)[None, :]
    token = (query_start + query).to(tl.int64)
    q_tile = tl.load(q + (token * q_stride_token + head * q_stride_head)[:, None] + dims[None, :], mask=mask, other=0.0)

    block_table = block_tables + request.to(tl.int64) * table_stride
    keys += kv_head * kv_stride_head
    values += kv_head * kv_stride_head
    keys_end = context_len + tl.minimum(first_query + BLOCK_QUERIES, query_len)
    last_key = tl.minimum(context_len + query, keys_end - 1)
    seen_by_all = (context_len + first_query + 1) // TILE * TILE
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    row_max = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    for first_key in range(0, seen_by_all, TILE):
        acc, row_max, row_sum = attend_tile(
            q_tile, acc, row_max, row_sum, first_key, keys_end, last_key, block_table, keys, values,
            kv_stride_block, kv_stride_token, qk_scale, KV_BLOCK, HEAD_DIM, BLOCK_DIM, TILE, MASKED=False,
        )  # fmt: skip
    for first_key in range(seen_by_all, keys_end, TILE):
        acc, row_max, row_sum = attend_tile(
            q_tile, acc, row_max, row_sum, first_key, keys_end, last_key, block_table, keys, values,
            kv_stride_block, kv_stride_token, qk_scale, KV_BLOCK, HEAD_DIM, BLOCK_DIM, TILE, MASKED=True,
        )  # fmt: skip
    result = (acc / row_sum[:, None]).to(out.dtype.element_ty)
    tl.store(out + (token * out_stride_token + head * HEAD_DIM)[:, None] + dims[None, :], result, mask=mask)
