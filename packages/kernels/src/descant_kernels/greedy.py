"""The largest logit of each row, without a pass by one lonely program over a vocabulary."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.sample import best_of_row_kernel
from descant_kernels.tuning import GREEDY_BLOCK


def greedy(logits: Tensor) -> Tensor:
    """ids[i] = argmax(logits[i]), the lowest index among equals.

    Args:
        logits: [num_rows, vocab], rows contiguous, any float dtype.

    Returns:
        [num_rows] int64.
    """
    num_rows, vocab_size = logits.shape
    num_tiles = triton.cdiv(vocab_size, GREEDY_BLOCK)
    best_values = torch.empty((num_rows, num_tiles), dtype=torch.float32, device=logits.device)
    best_tokens = torch.empty((num_rows, num_tiles), dtype=torch.int32, device=logits.device)
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    _largest_of_tile_kernel[(num_rows, num_tiles)](
        best_values, best_tokens, logits, vocab_size, num_tiles, logits.stride(0), BLOCK=GREEDY_BLOCK, num_warps=8
    )
    block = max(16, triton.next_power_of_2(num_tiles))
    best_of_row_kernel[(num_rows,)](ids, best_values, best_tokens, vocab_size, num_tiles, BLOCK=block, num_warps=1)
    return ids


@triton.jit
def _largest_of_tile_kernel(best_values, best_tokens, logits, vocab_size, num_tiles, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    token = tile * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(logits + row * stride + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    highest = tl.max(values, axis=0)
    tl.store(best_values + row * num_tiles + tile, highest)
    tl.store(best_tokens + row * num_tiles + tile, tl.min(tl.where(values == highest, token, 2147483647), axis=0))
