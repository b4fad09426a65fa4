"""Grammars' bitmasks on logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_TOKENS = 1024
WORD_BITS = 32


@triton.jit
def _apply(logits, rows, words, row_stride, num_words, vocab_size, BLOCK: tl.constexpr):
    masked = tl.program_id(0)
    row = tl.load(rows + masked)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < vocab_size
    word = tl.load(words + masked.to(tl.int64) * num_words + tokens // 32, mask=inside, other=-1)
    forbidden = ((word >> (tokens % 32)) & 1) == 0
    tl.store(logits + row * row_stride + tokens, float("-inf"), mask=inside & forbidden)


def apply_token_bitmask(logits: Tensor, rows: Tensor, words: Tensor) -> None:
    """logits[rows[i], t] = -inf where bit t % 32 of words[i, t // 32] is not set; in place. Only forbidden logits are
    written, and none is read.

    Args:
        logits: [num_rows, vocab], contiguous rows, any float type.
        rows: [n] int64, without repetition.
        words: [n, ceil(vocab / 32)] int32, contiguous.
    """
    num_masked, vocab_size = len(rows), logits.shape[1]
    if words.shape != (num_masked, triton.cdiv(vocab_size, WORD_BITS)) or words.dtype != torch.int32:
        raise ValueError(f"words of {num_masked} rows for {vocab_size} tokens; got {tuple(words.shape)} {words.dtype}")
    if num_masked == 0:
        return
    grid = (num_masked, triton.cdiv(vocab_size, BLOCK_TOKENS))
    _apply[grid](logits, rows, words, logits.stride(0), words.shape[1], vocab_size, BLOCK=BLOCK_TOKENS)
