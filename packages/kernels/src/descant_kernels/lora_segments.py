"""Tokens sorted by adapter and cut into segments, on the device and in static shapes: once a step, for all layers."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.tuning import MIN_DOT, SORT_BLOCK, SORT_CHUNK

START_BIT: int = tl.constexpr(32)
SLOT_BIT: int = tl.constexpr(8)
SLOT_MASK: int = tl.constexpr(0xFFFFFF)
LENGTH_MASK: int = tl.constexpr(0xFF)
"""Of a segment's word: its start in the upper 32 bits, then 24 of slot + 1 and 8 of length."""


class LoraSegments(NamedTuple):
    """Segment i is the tokens token_order[starts[i] : starts[i] + lengths[i]], all of adapter slot slots[i]."""

    token_order: Tensor
    """[num_tokens] int64: token indices by slot, base tokens first, in batch order within a slot."""
    words: Tensor
    """[max_segments] int64: start, slot and length in one, so that one wait for memory brings all three. 0 = unused;
    segments in use come first."""
    segment_size: int

    @property
    def starts(self) -> Tensor:
        """[max_segments] int64"""
        return self.words >> int(START_BIT)

    @property
    def lengths(self) -> Tensor:
        """[max_segments] int64, at most segment_size; 0 = unused"""
        return self.words & int(LENGTH_MASK)

    @property
    def slots(self) -> Tensor:
        """[max_segments] int64; -1 = base, and unused"""
        return (self.words >> int(SLOT_BIT) & int(SLOT_MASK)) - 1


@triton.jit
def load_segment(words, segment):
    """(start, length, slot); the length of an unused segment is 0."""
    word = tl.load(words + segment)
    return word >> START_BIT, (word & LENGTH_MASK).to(tl.int32), ((word >> SLOT_BIT) & SLOT_MASK) - 1


def max_segments(num_tokens: int, max_slots: int, segment_size: int) -> int:
    """Most segments that num_tokens tokens of the base and at most max_slots different slots can make."""
    return min(num_tokens, num_tokens // segment_size + max_slots + 1)


def segment_tokens(
    token_adapter_slot: Tensor, max_slots: int | None = None, segment_size: int = MIN_DOT
) -> LoraSegments:
    """Cut the tokens of each adapter slot, and those of the base, into segments of up to `segment_size` tokens.

    Sorts by counting, in two launches: quadratic in the tokens of a step, but cheaper than a radix sort's many launches
    up to some ten thousand tokens.

    Args:
        token_adapter_slot: [num_tokens] int32; -1 = base.
        max_slots: upper bound of the different slots >= 0 in the batch (its number of requests is one); by default
            num_tokens. With `num_tokens` it fixes the shapes, so the call can be captured in a CUDA graph. Segments
            beyond what it allows are dropped.
        segment_size: 16 for decode; 32, 64 or 128 where an adapter has many tokens.
    """
    if segment_size not in (16, 32, 64, 128):
        raise ValueError(f"segment_size must be 16, 32, 64 or 128, got {segment_size}")
    num_tokens, device = token_adapter_slot.shape[0], token_adapter_slot.device
    bound = max_segments(num_tokens, num_tokens if max_slots is None else max_slots, segment_size)
    token_order = torch.empty(num_tokens, dtype=torch.int64, device=device)
    words = torch.zeros(bound, dtype=torch.int64, device=device)
    places, offsets, counts = (torch.empty(num_tokens, dtype=torch.int32, device=device) for _ in range(3))
    grid = (triton.cdiv(num_tokens, SORT_BLOCK),)
    _place_tokens_kernel[grid](
        token_order, places, offsets, counts, token_adapter_slot, num_tokens, BLOCK=SORT_BLOCK, CHUNK=SORT_CHUNK
    )
    _cut_segments_kernel[grid](
        words,
        places,
        offsets,
        counts,
        token_adapter_slot,
        num_tokens,
        bound,
        SEGMENT=segment_size,
        BLOCK=SORT_BLOCK,
        CHUNK=SORT_CHUNK,
    )
    return LoraSegments(token_order, words, segment_size)


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["token_adapter_slot"])
def _place_tokens_kernel(
    token_order,
    places,
    offsets,
    counts,
    token_adapter_slot,
    num_tokens,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """For each token: its place in the sorted order, and its index in and the size of its slot's run."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_token = token < num_tokens
    slot = tl.load(token_adapter_slot + token, mask=is_token, other=-2)
    smaller = tl.zeros([BLOCK], tl.int32)
    equal_before = tl.zeros([BLOCK], tl.int32)
    equal = tl.zeros([BLOCK], tl.int32)
    for first in range(0, num_tokens, CHUNK):
        other = first + tl.arange(0, CHUNK)
        exists = (other < num_tokens)[None, :]
        other_slot = tl.load(token_adapter_slot + other, mask=other < num_tokens, other=-2)[None, :]
        is_equal = exists & (other_slot == slot[:, None])
        smaller += tl.sum((exists & (other_slot < slot[:, None])).to(tl.int32), axis=1)
        equal += tl.sum(is_equal.to(tl.int32), axis=1)
        equal_before += tl.sum((is_equal & (other[None, :] < token[:, None])).to(tl.int32), axis=1)
    place = smaller + equal_before
    tl.store(token_order + place, token.to(tl.int64), mask=is_token)
    tl.store(places + token, place, mask=is_token)
    tl.store(offsets + token, equal_before, mask=is_token)
    tl.store(counts + token, equal, mask=is_token)


@triton.jit(do_not_specialize=["num_tokens", "bound"], do_not_specialize_on_alignment=["token_adapter_slot"])
def _cut_segments_kernel(
    words,
    places,
    offsets,
    counts,
    token_adapter_slot,
    num_tokens,
    bound,
    SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Every SEGMENT-th token of a run starts a segment; before it lie those of smaller slots and of its own run."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_token = token < num_tokens
    slot = tl.load(token_adapter_slot + token, mask=is_token, other=-2)
    offset = tl.load(offsets + token, mask=is_token, other=0)
    segment = offset // SEGMENT
    for first in range(0, num_tokens, CHUNK):
        other = first + tl.arange(0, CHUNK)
        other_slot = tl.load(token_adapter_slot + other, mask=other < num_tokens, other=-2)
        other_offset = tl.load(offsets + other, mask=other < num_tokens, other=0)
        is_start = (other < num_tokens) & (other_offset % SEGMENT == 0)
        segment += tl.sum((is_start[None, :] & (other_slot[None, :] < slot[:, None])).to(tl.int32), axis=1)
    starts_segment = is_token & (offset % SEGMENT == 0) & (segment < bound)
    place = tl.load(places + token, mask=is_token, other=0)
    count = tl.load(counts + token, mask=is_token, other=0)
    length = tl.minimum(count - offset, SEGMENT).to(tl.int64)
    word = (place.to(tl.int64) << START_BIT) | ((slot + 1).to(tl.int64) << SLOT_BIT) | length
    tl.store(words + segment, word, mask=starts_segment)
