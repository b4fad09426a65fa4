"""Draw tokens from logits by the Gumbel-max trick: no softmax, no host sync, one pass over the logits.

Random numbers are Philox4x32-10 (Salmon et al., SC 2011) keyed by the request's seed and counted by (token, position),
so a request's draws depend on nothing else in the batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.tuning import SAMPLE_LANE

BELOW_1: float = tl.constexpr(1 - 2**-24)
"""The largest float32 below 1."""


def sample(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """token[r] = argmax_v(logits[r, v] / temperatures[r] + gumbel(seeds[r], positions[r], v)).

    At temperature 0: argmax_v(logits[r, v]). Equal values go to the lower token id.

    Args:
        logits: [rows, vocab] float32, float16 or bfloat16, rows contiguous; -inf is never drawn.
        temperatures: [rows] float32, >= 0.
        seeds: [rows] int64.
        positions: [rows] int64, the index of the token that is drawn; below 2^31.

    Returns:
        [rows] int64.
    """
    num_rows, vocab_size = logits.shape
    if logits.stride(-1) != 1:
        raise ValueError(f"rows of logits must be contiguous, got stride {logits.stride(-1)}")
    num_tiles = triton.cdiv(vocab_size, 4 * SAMPLE_LANE)
    best_values = torch.empty((num_rows, num_tiles), dtype=torch.float32, device=logits.device)
    best_tokens = torch.empty((num_rows, num_tiles), dtype=torch.int32, device=logits.device)
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    _best_of_tile_kernel[(num_rows, num_tiles)](
        best_values,
        best_tokens,
        logits,
        temperatures,
        seeds,
        positions,
        vocab_size,
        num_tiles,
        logits.stride(0),
        LANE=SAMPLE_LANE,
    )
    block = max(16, triton.next_power_of_2(num_tiles))
    best_of_row_kernel[(num_rows,)](out, best_values, best_tokens, vocab_size, num_tiles, BLOCK=block, num_warps=1)
    return out


@triton.jit
def _gumbel(bits):
    """uint32 -> a draw from the standard Gumbel distribution: -log of an exponential draw.

    What wins an argmax are the smallest exponential draws, so those need relative precision: -log(1 - u) as a series
    where u is small, not through 1 - u.
    """
    # The largest numbers round to 1, whose logarithm would make the likeliest token impossible.
    u = tl.minimum((bits.to(tl.float32) + 0.5) * (1.0 / 4294967296.0), BELOW_1)
    series = u * (1.0 + u * (0.5 + u * (1.0 / 3.0 + u * 0.25)))
    exponential = tl.where(u < 0.0078125, series, -tl.log(1.0 - u))
    return -tl.log(exponential)


@triton.jit
def _better_of_lane(best_value, best_token, row_logits, tokens, vocab_size, temperature, bits):
    logits = tl.load(row_logits + tokens, mask=tokens < vocab_size, other=float("-inf")).to(tl.float32)
    if temperature > 0:
        logits = logits / temperature + _gumbel(bits)
    is_better = logits > best_value
    return tl.where(is_better, logits, best_value), tl.where(is_better, tokens, best_token)


@triton.jit(do_not_specialize_on_alignment=["temperatures", "seeds", "positions"])
def _best_of_tile_kernel(
    best_values,
    best_tokens,
    logits,
    temperatures,
    seeds,
    positions,
    vocab_size,
    num_tiles,
    stride,
    LANE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    temperature = tl.load(temperatures + row)
    lane = tl.arange(0, LANE)
    token = tl.load(positions + row).to(tl.int32)
    zero = tl.zeros([LANE], tl.int32)
    r0, r1, r2, r3 = tl.philox(tl.load(seeds + row), tile * LANE + lane, token + zero, zero, zero)
    tokens = tile * (4 * LANE) + lane
    value = tl.full([LANE], float("-inf"), tl.float32)
    choice = tokens
    row_logits = logits + row * stride
    value, choice = _better_of_lane(value, choice, row_logits, tokens, vocab_size, temperature, r0)
    value, choice = _better_of_lane(value, choice, row_logits, tokens + LANE, vocab_size, temperature, r1)
    value, choice = _better_of_lane(value, choice, row_logits, tokens + 2 * LANE, vocab_size, temperature, r2)
    value, choice = _better_of_lane(value, choice, row_logits, tokens + 3 * LANE, vocab_size, temperature, r3)
    highest = tl.max(value, axis=0)
    first = tl.min(tl.where(value == highest, choice, 2147483647), axis=0)
    tl.store(best_values + row * num_tiles + tile, highest)
    tl.store(best_tokens + row * num_tiles + tile, first)


@triton.jit
def best_of_row_kernel(out, best_values, best_tokens, vocab_size, num_tiles, BLOCK: tl.constexpr):
    """The best of each row's tiles; the lower token id among equals."""
    row = tl.program_id(0).to(tl.int64)
    tiles = tl.arange(0, BLOCK)
    mask = tiles < num_tiles
    values = tl.load(best_values + row * num_tiles + tiles, mask=mask, other=float("-inf"))
    tokens = tl.load(best_tokens + row * num_tiles + tiles, mask=mask, other=2147483647)
    highest = tl.max(values, axis=0)
    token = tl.min(tl.where(values == highest, tokens, 2147483647), axis=0)
    # A row of NaN has no best token; whoever reads the id must still stay inside the vocabulary.
    tl.store(out + row, tl.minimum(token, vocab_size - 1).to(tl.int64))
