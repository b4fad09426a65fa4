"""Puts a grammar's bitmask on logits."""

import numpy as np
import torch
from torch import Tensor

from descant_engine.grammar.bitmask import GrammarBitmask
from descant_engine.runner.transfer import to_device


def apply_bitmask(bitmask: GrammarBitmask, logits: Tensor) -> None:
    """logits [num_samples, vocab]: those of tokens that are not allowed become -inf, in place."""
    if logits.is_cuda:
        from descant_kernels import apply_token_bitmask

        rows = to_device(np.array(bitmask.sample_indices, dtype=np.int64), logits.device)
        apply_token_bitmask(logits, rows, to_device(bitmask.words, logits.device))
        return
    allowed = np.unpackbits(bitmask.words.view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
    forbidden = torch.from_numpy(allowed == 0)
    if len(bitmask.sample_indices) == len(logits):
        logits.masked_fill_(forbidden, -torch.inf)
    else:
        for index, row in zip(bitmask.sample_indices, forbidden, strict=True):
            logits[index].masked_fill_(row, -torch.inf)
