"""Tokens sorted by adapter and cut into segments, on the device and in static shapes: once a step, for all layers."""

from typing import NamedTuple

import torch
from torch import Tensor

from descant_kernels.tuning import MIN_DOT


class LoraSegments(NamedTuple):
    """Segment i is the tokens token_order[starts[i] : starts[i] + lengths[i]], all of adapter slot slots[i]."""

    token_order: Tensor
    """[num_tokens] int64: token indices by slot, base tokens first, in batch order within a slot."""
    starts: Tensor
    """[max_segments] int64"""
    lengths: Tensor
    """[max_segments] int32, at most segment_size; 0 = unused. Segments in use come first."""
    slots: Tensor
    """[max_segments] int64"""
    segment_size: int


def max_segments(num_tokens: int, max_slots: int, segment_size: int) -> int:
    """Most segments that num_tokens tokens of at most max_slots different slots can make."""
    return min(num_tokens, num_tokens // segment_size + max_slots)


def segment_tokens(
    token_adapter_slot: Tensor, max_slots: int | None = None, segment_size: int = MIN_DOT
) -> LoraSegments:
    """Cut the tokens of each adapter slot >= 0 into segments of up to `segment_size` tokens.

    Args:
        token_adapter_slot: [num_tokens] int32; -1 = base, in no segment.
        max_slots: upper bound of the different slots in the batch (its number of requests is one); by default
            num_tokens. With `num_tokens` it fixes the shapes, so the call can be captured in a CUDA graph.
        segment_size: 16 for decode; 32, 64 or 128 where an adapter has many tokens.
    """
    if segment_size not in (16, 32, 64, 128):
        raise ValueError(f"segment_size must be 16, 32, 64 or 128, got {segment_size}")
    num_tokens = token_adapter_slot.shape[0]
    bound = max_segments(num_tokens, num_tokens if max_slots is None else max_slots, segment_size)
    slots, token_order = torch.sort(token_adapter_slot, stable=True)
    place = torch.arange(num_tokens, device=slots.device)
    is_first = torch.ones_like(slots, dtype=torch.bool)
    is_first[1:] = slots[1:] != slots[:-1]
    run_start = torch.where(is_first, place, 0).cummax(0).values if num_tokens else place
    is_adapted = slots >= 0
    is_start = is_adapted & ((place - run_start) % segment_size == 0)
    segment = is_start.cumsum(0) - 1
    # What belongs to no segment is written to one more place at the end, and dropped with it.
    starts = place.new_zeros(bound + 1).scatter_(0, torch.where(is_start, segment, bound), place)[:bound]
    members = torch.where(is_adapted, segment, bound)
    lengths = place.new_zeros(bound + 1).scatter_add_(0, members, torch.ones_like(members))[:bound]
    segment_slots = place.new_zeros(bound + 1).scatter_(0, members, slots.long())[:bound]
    return LoraSegments(token_order, starts, lengths.int(), segment_slots, segment_size)
