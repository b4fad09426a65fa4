"""min_p, top_k and top_p without a sort: each keeps the logits from a threshold up, and thresholds are found by search.

A float's bits, read as an integer of the right sign, are in the floats' order. The largest integer from which up there
are k tokens, or a share p of the mass, is found two bits at a time in 16 passes over the row. One program a row: the
row stays in the L2 cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.tuning import TRUNCATE_BLOCK


def truncate(logits: Tensor, rows: Tensor, temperatures: Tensor, min_p: Tensor, top_k: Tensor, top_p: Tensor) -> None:
    """In each of `rows`, in place: what the limits exclude becomes -inf. With p = softmax(logits / temperature):

    - min_p keeps tokens whose p is at least min_p * max(p); 0 keeps all;
    - of those, top_k keeps the k likeliest; 0 keeps all;
    - of those, with p summing to 1 over them, top_p keeps the fewest likeliest that reach top_p together; 1 keeps all.

    Tokens as likely as the last one kept are kept with it.

    Args:
        logits: [num_rows, vocab] float32, rows contiguous.
        rows: [num_users] int64, distinct.
        temperatures, min_p, top_p: [num_users] float32; the temperatures positive.
        top_k: [num_users] int64.
    """
    if logits.dtype != torch.float32 or logits.stride(-1) != 1:
        raise ValueError(f"logits must be float32 with contiguous rows; got {logits.dtype}, stride {logits.stride(-1)}")
    _truncate_kernel[(len(rows),)](
        logits,
        rows,
        temperatures,
        min_p,
        top_k,
        top_p,
        logits.shape[1],
        logits.stride(0),
        BLOCK=TRUNCATE_BLOCK,
        num_warps=16,
    )


@triton.jit
def _load(row_logits, start, vocab_size, BLOCK: tl.constexpr):
    token = start + tl.arange(0, BLOCK)
    return tl.load(row_logits + token, mask=token < vocab_size, other=float("-inf"))


@triton.jit
def _key(value):
    """float32 -> int32 in the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _weight(value, highest, temperature, floor, COUNTS: tl.constexpr):
    """What a token adds: 1, or its share of the mass; nothing below the floor."""
    weight = 1.0 if COUNTS else tl.exp((value - highest) / temperature)
    return tl.where(_key(value) >= floor, weight, 0.0)


@triton.jit
def _total(row_logits, vocab_size, highest, temperature, floor, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        value = _load(row_logits, start, vocab_size, BLOCK)
        total += _weight(value, highest, temperature, floor, False)
    return tl.sum(total, axis=0)


@triton.jit
def _last_that_reaches(
    row_logits, vocab_size, highest, temperature, floor, target, COUNTS: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest key from which up the weights reach `target`."""
    found = tl.full([], -2147483648, tl.int64)
    for step in range(16):
        unit = tl.full([], 1, tl.int64) << (30 - 2 * step)
        one, two, three = (found + unit).to(tl.int32), (found + 2 * unit).to(tl.int32), (found + 3 * unit).to(tl.int32)
        above_one = tl.zeros([BLOCK], tl.float32)
        above_two = tl.zeros([BLOCK], tl.float32)
        above_three = tl.zeros([BLOCK], tl.float32)
        for start in range(0, vocab_size, BLOCK):
            value = _load(row_logits, start, vocab_size, BLOCK)
            weight = _weight(value, highest, temperature, floor, COUNTS)
            key = _key(value)
            above_one += tl.where(key >= one, weight, 0.0)
            above_two += tl.where(key >= two, weight, 0.0)
            above_three += tl.where(key >= three, weight, 0.0)
        found += tl.where(tl.sum(above_one, axis=0) >= target, unit, 0)
        found += tl.where(tl.sum(above_two, axis=0) >= target, unit, 0)
        found += tl.where(tl.sum(above_three, axis=0) >= target, unit, 0)
    return found.to(tl.int32)


@triton.jit(do_not_specialize_on_alignment=["rows", "temperatures", "min_ps", "top_ks", "top_ps"])
def _truncate_kernel(logits, rows, temperatures, min_ps, top_ks, top_ps, vocab_size, stride, BLOCK: tl.constexpr):
    user = tl.program_id(0)
    row_logits = logits + tl.load(rows + user) * stride
    temperature = tl.load(temperatures + user)
    min_p, top_k, top_p = tl.load(min_ps + user), tl.load(top_ks + user), tl.load(top_ps + user)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        highest = tl.maximum(highest, _load(row_logits, start, vocab_size, BLOCK))
    best = tl.max(highest, axis=0)
    floor = tl.full([], -2147483648, tl.int32)
    if min_p > 0:
        floor = _key(best + temperature * tl.log(min_p))
    if (top_k > 0) & (top_k < vocab_size):
        target = top_k.to(tl.float32)
        lowest = tl.full([], -2147483648, tl.int32)
        kth = _last_that_reaches(row_logits, vocab_size, best, temperature, lowest, target, True, BLOCK)
        floor = tl.maximum(floor, kth)
    if top_p < 1:
        # A target of 0 would be reached without any token.
        target = tl.maximum(top_p, 1e-30) * _total(row_logits, vocab_size, best, temperature, floor, BLOCK)
        last = _last_that_reaches(row_logits, vocab_size, best, temperature, floor, target, False, BLOCK)
        floor = tl.maximum(floor, last)
    for start in range(0, vocab_size, BLOCK):
        token = start + tl.arange(0, BLOCK)
        value = _load(row_logits, start, vocab_size, BLOCK)
        tl.store(row_logits + token, float("-inf"), mask=(token < vocab_size) & (_key(value) < floor))
