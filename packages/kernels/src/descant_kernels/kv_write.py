"""Put this step's keys and values into the block pool."""

import triton
import triton.language as tl
from torch import Tensor


def kv_write(keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """key_cache[slot // block_size, slot % block_size] = keys[t], likewise values, for slot = slot_mapping[t] >= 0.

    Args:
        keys, values: [num_tokens, num_kv_heads, head_dim], each of any strides but the last, which is 1.
        key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim], strided views into one pool,
            of equal strides; offsets beyond 2^31 elements are fine.
        slot_mapping: [num_tokens] int64; -1 skips the token. No slot may appear twice.
    """
    num_tokens, num_heads, head_dim = keys.shape
    check_caches(keys, values, key_cache, value_cache)
    _kv_write_kernel[(num_tokens,)](
        keys,
        values,
        key_cache,
        value_cache,
        slot_mapping,
        num_heads,
        *keys.stride()[:2],
        *values.stride()[:2],
        *key_cache.stride()[:3],
        BLOCK_SIZE=key_cache.shape[1],
        HEAD_DIM=head_dim,
        BLOCK_HEADS=triton.next_power_of_2(num_heads),
        BLOCK_DIM=triton.next_power_of_2(head_dim),
    )


def check_caches(keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    if key_cache.stride() != value_cache.stride():
        raise ValueError(f"caches must have equal strides: {key_cache.stride()} and {value_cache.stride()}")
    if not keys.stride(-1) == values.stride(-1) == key_cache.stride(-1) == 1:
        raise ValueError("the last dimension of keys, values and their caches must be contiguous")


@triton.jit(do_not_specialize_on_alignment=["slot_mapping"])
def _kv_write_kernel(
    keys,
    values,
    key_cache,
    value_cache,
    slot_mapping,
    num_heads,
    key_stride_token,
    key_stride_head,
    value_stride_token,
    value_stride_head,
    cache_stride_block,
    cache_stride_token,
    cache_stride_head,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot < 0:
        return
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (heads < num_heads) & (dims < HEAD_DIM)
    key = tl.load(keys + token * key_stride_token + heads * key_stride_head + dims, mask=mask)
    value = tl.load(values + token * value_stride_token + heads * value_stride_head + dims, mask=mask)
    row = (slot // BLOCK_SIZE) * cache_stride_block + (slot % BLOCK_SIZE) * cache_stride_token
    target = row + heads * cache_stride_head + dims
    tl.store(key_cache + target, key, mask=mask)
    tl.store(value_cache + target, value, mask=mask)
