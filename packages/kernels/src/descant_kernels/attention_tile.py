"""What both attention kernels do with one tile of keys: online softmax (Milakov and Gimelshein, 2018; Dao, 2023)."""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
"""Scores are scaled by it once, so that exp2, the hardware's instruction, does for exp."""


@triton.jit
def attend_tile(
    q,
    acc,
    row_max,
    row_sum,
    first_key,
    keys_end,
    last_key,
    block_table,
    keys,
    values,
    stride_block,
    stride_token,
    qk_scale,
    KV_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Fold keys [first_key, first_key + TILE) into the running (acc, row_max, row_sum) of each row of q.

    Row i sees keys up to last_key[i] < keys_end. Without MASKED every row must see the whole tile. The first tile
    folded must show each row at least one key, or its maximum stays -inf.
    """
    key = first_key + tl.arange(0, TILE)
    dims = tl.arange(0, BLOCK_DIM)
    exists = key < keys_end
    mask = exists[:, None] & (dims < HEAD_DIM)[None, :]
    if MASKED:
        block = tl.load(block_table + key // KV_BLOCK, mask=exists, other=0).to(tl.int64)
    else:
        block = tl.load(block_table + key // KV_BLOCK).to(tl.int64)
    row = block * stride_block + (key % KV_BLOCK) * stride_token
    offsets = row[:, None] + dims[None, :]
    # A tile that exists as a whole needs no mask, and loads without one are cheaper.
    UNMASKED: tl.constexpr = not MASKED and HEAD_DIM == BLOCK_DIM
    if UNMASKED:
        k = tl.load(keys + offsets)
    else:
        k = tl.load(keys + offsets, mask=mask, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * qk_scale
    if MASKED:
        scores = tl.where(key[None, :] <= last_key[:, None], scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, axis=1))
    probabilities = tl.exp2(scores - new_max[:, None])
    correction = tl.exp2(row_max - new_max)
    row_sum = row_sum * correction + tl.sum(probabilities, axis=1)
    if UNMASKED:
        v = tl.load(values + offsets)
    else:
        v = tl.load(values + offsets, mask=mask, other=0.0)
    acc = tl.dot(probabilities.to(v.dtype), v, acc * correction[:, None], input_precision="ieee")
    return acc, new_max, row_sum
