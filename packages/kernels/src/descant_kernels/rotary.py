"""Rotary position embedding (Su et al., 2021) in the half-split layout of GPT-NeoX and transformers' Llama."""

import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.kv_write import check_caches
from descant_kernels.partial_sums import load_sum, partial_sums


def rotary(q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> None:
    """In place, each head h of q and k: h = [h1 cos - h2 sin, h2 cos + h1 sin], (h1, h2) the halves of h, in float32.

    Args:
        q, k: [num_tokens, heads, head_dim], may be slices of a packed qkv tensor; last dimension contiguous.
        positions: [num_tokens] int64.
        cos_sin_cache: [max_position, head_dim] float32, cosines in the first half of a row, sines in the second.
    """
    num_tokens, num_q_heads, head_dim = q.shape
    num_k_heads = k.shape[1]
    _check_rotary(q, k, cos_sin_cache)
    _rotary_kernel[(num_tokens,)](
        q,
        k,
        positions,
        cos_sin_cache,
        num_q_heads,
        num_k_heads,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        HALF=head_dim // 2,
        BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
        BLOCK_Q_HEADS=triton.next_power_of_2(num_q_heads),
        BLOCK_K_HEADS=triton.next_power_of_2(num_k_heads),
    )


def rotary_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    """`rotary` of q and k, then `kv_write` of k and v, in one launch; see those two for the arguments.

    Any of q, k and v may be partial sums, [splits, num_tokens, heads, head_dim], added up in their order: then q[0] is
    where the turned q lies.
    """
    splits, split_strides = zip(*(partial_sums(heads, 3) for heads in (q, k, v)), strict=True)
    q, k, v = (heads[0] if heads.dim() == 4 else heads for heads in (q, k, v))
    num_tokens, num_q_heads, head_dim = q.shape
    num_k_heads = k.shape[1]
    _check_rotary(q, k, cos_sin_cache)
    check_caches(k, v, key_cache, value_cache)
    _rotary_kv_write_kernel[(num_tokens,)](
        q,
        k,
        v,
        positions,
        cos_sin_cache,
        key_cache,
        value_cache,
        slot_mapping,
        num_q_heads,
        num_k_heads,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *split_strides,
        *key_cache.stride()[:3],
        HALF=head_dim // 2,
        BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
        BLOCK_Q_HEADS=triton.next_power_of_2(num_q_heads),
        BLOCK_K_HEADS=triton.next_power_of_2(num_k_heads),
        BLOCK_SIZE=key_cache.shape[1],
        Q_SPLITS=splits[0],
        K_SPLITS=splits[1],
        V_SPLITS=splits[2],
    )


def _check_rotary(q: Tensor, k: Tensor, cos_sin_cache: Tensor) -> None:
    head_dim = q.shape[2]
    if head_dim % 2 or k.shape[2] != head_dim or cos_sin_cache.shape[1] != head_dim:
        raise ValueError(
            f"head_dim must be even and the same for q ({head_dim}), k ({k.shape[2]})"
            f" and the cos_sin_cache ({cos_sin_cache.shape[1]})"
        )
    if q.stride(-1) != 1 or k.stride(-1) != 1 or not cos_sin_cache.is_contiguous():
        raise ValueError("q and k need a contiguous last dimension, cos_sin_cache must be contiguous")


@triton.jit
def _rotate_heads(
    row, num_heads, stride_head, split_stride, cos, sin,
    HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    heads = tl.arange(0, HEADS)[:, None]
    dims = tl.arange(0, BLOCK)[None, :]
    mask = (heads < num_heads) & (dims < HALF)
    first = row + heads * stride_head + dims
    second = first + HALF
    h1 = load_sum(first, mask, split_stride, SPLITS)
    h2 = load_sum(second, mask, split_stride, SPLITS)
    turned_1 = (h1 * cos - h2 * sin).to(row.dtype.element_ty)
    turned_2 = (h2 * cos + h1 * sin).to(row.dtype.element_ty)
    tl.store(first, turned_1, mask=mask)
    tl.store(second, turned_2, mask=mask)
    return turned_1, turned_2


@triton.jit
def _angles(cos_sin_cache, position, HALF: tl.constexpr, BLOCK: tl.constexpr):
    dims = tl.arange(0, BLOCK)[None, :]
    angles = cos_sin_cache + position.to(tl.int64) * (2 * HALF) + dims
    return tl.load(angles, mask=dims < HALF, other=0.0), tl.load(angles + HALF, mask=dims < HALF, other=0.0)


@triton.jit(do_not_specialize_on_alignment=["positions"])
def _rotary_kernel(
    q,
    k,
    positions,
    cos_sin_cache,
    num_q_heads,
    num_k_heads,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_Q_HEADS: tl.constexpr,
    BLOCK_K_HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    cos, sin = _angles(cos_sin_cache, tl.load(positions + token), HALF, BLOCK_HALF)
    _rotate_heads(
        q + token * q_stride_token, num_q_heads, q_stride_head, 0, cos, sin, HALF, BLOCK_HALF, BLOCK_Q_HEADS, SPLITS=1
    )
    _rotate_heads(
        k + token * k_stride_token, num_k_heads, k_stride_head, 0, cos, sin, HALF, BLOCK_HALF, BLOCK_K_HEADS, SPLITS=1
    )


@triton.jit(do_not_specialize_on_alignment=["positions", "slot_mapping"])
def _rotary_kv_write_kernel(
    q,
    k,
    v,
    positions,
    cos_sin_cache,
    key_cache,
    value_cache,
    slot_mapping,
    num_q_heads,
    num_k_heads,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
    q_stride_split,
    k_stride_split,
    v_stride_split,
    cache_stride_block,
    cache_stride_token,
    cache_stride_head,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_Q_HEADS: tl.constexpr,
    BLOCK_K_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    Q_SPLITS: tl.constexpr,
    K_SPLITS: tl.constexpr,
    V_SPLITS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    cos, sin = _angles(cos_sin_cache, tl.load(positions + token), HALF, BLOCK_HALF)
    _rotate_heads(
        q + token * q_stride_token, num_q_heads, q_stride_head, q_stride_split, cos, sin,
        HALF, BLOCK_HALF, BLOCK_Q_HEADS, Q_SPLITS,
    )  # fmt: skip
    key_1, key_2 = _rotate_heads(
        k + token * k_stride_token, num_k_heads, k_stride_head, k_stride_split, cos, sin,
        HALF, BLOCK_HALF, BLOCK_K_HEADS, K_SPLITS,
    )  # fmt: skip
    if slot < 0:
        return
    heads = tl.arange(0, BLOCK_K_HEADS)[:, None]
    dims = tl.arange(0, BLOCK_HALF)[None, :]
    mask = (heads < num_k_heads) & (dims < HALF)
    values = v + token * v_stride_token + heads * v_stride_head + dims
    row = (slot // BLOCK_SIZE) * cache_stride_block + (slot % BLOCK_SIZE) * cache_stride_token
    target = row + heads * cache_stride_head + dims
    tl.store(key_cache + target, key_1, mask=mask)
    tl.store(key_cache + target + HALF, key_2, mask=mask)
    value_1 = load_sum(values, mask, v_stride_split, V_SPLITS)
    value_2 = load_sum(values + HALF, mask, v_stride_split, V_SPLITS)
    tl.store(value_cache + target, value_1.to(value_cache.dtype.element_ty), mask=mask)
    tl.store(value_cache + target + HALF, value_2.to(value_cache.dtype.element_ty), mask=mask)
