"""Attention within whole sequences that lie one after another on the token axis, each token seeing all of its own.

There is no KV cache: everything is computed in one step. On the CPU sequences of one length are a batch without any
padding; on a GPU, where launches cost more than padding, those of about one length are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Sequences(Protocol):
    """One step's, the shortest first."""

    def attend(self, qkv: Tensor) -> Tensor:
        """qkv [num_tokens, 3, heads, d] -> [num_tokens, heads * d]; the scale is d ** -0.5."""


@dataclass(frozen=True, slots=True)
class _EqualLengths:
    start: int
    """Of the first sequence's first token."""
    count: int
    length: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)


class UnpaddedSequences:
    def __init__(self, lengths: Sequence[int]) -> None:
        self._groups = []
        start = 0
        for length, members in groupby(lengths):
            group = _EqualLengths(start, len(list(members)), length)
            self._groups.append(group)
            start = group.tokens.stop

    def attend(self, qkv: Tensor) -> Tensor:
        num_tokens, _, heads, width = qkv.shape
        output = qkv.new_empty(num_tokens, heads, width)
        for group in self._groups:
            q, k, v = qkv[group.tokens].unflatten(0, (group.count, group.length)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v)
            output[group.tokens] = attended.transpose(1, 2).flatten(0, 1)
        return output.flatten(1)


@dataclass(frozen=True, slots=True)
class _Padded:
    tokens: Tensor
    """[count * longest] int64: each place's token; any token where the sequence is over."""
    mask: Tensor
    """[count, 1, 1, longest] bool: where there is a token."""
    places: Tensor
    """[num_tokens] int64: each token's place."""
    length: int


class PaddedSequences:
    """Lengths between the same two powers of two make one batch, of which less than half is padding."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self._batches = []
        start = 0
        for _, members in groupby(lengths, key=lambda length: (length - 1).bit_length()):
            batch = list(members)
            self._batches.append(_padded(start, batch, device))
            start += sum(batch)

    def attend(self, qkv: Tensor) -> Tensor:
        parts = []
        for batch in self._batches:
            q, k, v = qkv[batch.tokens].unflatten(0, (-1, batch.length)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=batch.mask)
            parts.append(attended.transpose(1, 2).flatten(0, 1).flatten(1)[batch.places])
        return torch.cat(parts)


def sequences_of(lengths: Sequence[int], device: torch.device) -> Sequences:
    """`lengths`: of each sequence in tokens, in ascending order."""
    return PaddedSequences(lengths, device) if device.type == "cuda" else UnpaddedSequences(lengths)


def _padded(start: int, lengths: list[int], device: torch.device) -> _Padded:
    longest = lengths[-1]
    own = torch.tensor(lengths)
    columns = torch.arange(longest)
    mask = columns < own[:, None]
    tokens = start + own.cumsum(0)[:, None] - own[:, None] + columns
    tokens = torch.where(mask, tokens, start)
    return _Padded(
        tokens.flatten().to(device), mask[:, None, None].to(device), mask.flatten().nonzero()[:, 0].to(device), longest
    )
