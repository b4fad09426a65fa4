"""Paged attention for any mix of prefill chunks and decode steps.

Requests with one query token go to the split-KV kernel, the others to the prefill kernel; each kernel reads the
lengths from the device and skips what is not its own, so no host sync and no reordering is needed.
"""

import torch
from torch import Tensor

from descant_kernels.attention_decode import decode_attention
from descant_kernels.attention_prefill import prefill_attention


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    max_query_len: int,
    max_seq_len: int,
) -> Tensor:
    """out[t, h] = softmax(scale * q[t, h] . K[:p + 1, g].T) . V[:p + 1, g], p the position of t, g the KV head of h.

    K and V are the keys and values of the token's request, read through its block table; request i's queries are the
    last of its seq_lens[i] tokens. Accumulated in float32.

    Args:
        q: [num_tokens, num_q_heads, head_dim], any strides but the last, which is 1.
        key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim], of equal strides, q's dtype.
        block_tables: [num_requests, max_blocks] int32; entries past a sequence may be anything.
        query_start_loc: [num_requests + 1] int32.
        seq_lens: [num_requests] int32. A request without query tokens is skipped, one of length 0 gives zeros.
        max_query_len, max_seq_len: upper bounds of this batch; they choose kernels and split counts, no more.

    Returns:
        [num_tokens, num_q_heads, head_dim], contiguous; rows that belong to no request are undefined.
    """
    _check_layout(q, key_cache, value_cache)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    batch = (block_tables, query_start_loc, seq_lens)
    decode_attention(out, q, key_cache, value_cache, *batch, scale, max_seq_len)
    if max_query_len > 1:
        prefill_attention(out, q, key_cache, value_cache, *batch, scale)
    return out


def invariant_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
) -> Tensor:
    """`paged_attention`, each token's bits the same in any batch and any chunk: one kernel for every query length, keys
    in their order. Slow where few requests decode long contexts, for want of splits."""
    _check_layout(q, key_cache, value_cache)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    batch = (block_tables, query_start_loc, seq_lens)
    prefill_attention(out, q, key_cache, value_cache, *batch, scale, min_query_len=1)
    return out


def _check_layout(q: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    if key_cache.stride() != value_cache.stride():
        raise ValueError(f"caches must have equal strides: {key_cache.stride()} and {value_cache.stride()}")
    if q.stride(-1) != 1 or key_cache.stride(-1) != 1:
        raise ValueError("the last dimension of q and of the caches must be contiguous")
    if q.shape[1] % key_cache.shape[2]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {key_cache.shape[2]} KV heads evenly")
    if not q.dtype == key_cache.dtype == value_cache.dtype:
        raise ValueError(f"q ({q.dtype}) and the caches ({key_cache.dtype}, {value_cache.dtype}) must have one dtype")
