"""The inputs of one step: first its lengths as host arrays, then the tensors gathered from the request rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from descant_engine.forward_context import BASE_SLOT, AttentionInputs
from descant_engine.runner.request_states import RequestStates
from descant_engine.runner.transfer import to_device
from descant_engine.scheduler.plan import ScheduledRequest

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StepRows:
    """Who takes part in a step and how much, in batch order, on the host."""

    rows: IntArray
    """[num_requests]"""
    num_computed: IntArray
    """[num_requests]: tokens before this step's"""
    query_lens: IntArray
    """[num_requests]: tokens in this step"""
    samples: npt.NDArray[np.bool_]
    """[num_requests]: whether the last of them gives a sample"""
    request_ids: tuple[str, ...]
    slots_in_batch: tuple[int, ...]
    num_drafts: IntArray | None = None
    """[num_requests]: how many of the tokens are drafts, each of which gives a sample too; None if nobody has any"""

    @classmethod
    def of(cls, scheduled: Sequence[ScheduledRequest], states: RequestStates) -> "StepRows":
        return cls(
            rows=np.array([states.row(r.request_id) for r in scheduled], dtype=np.int64),
            num_computed=np.array([r.num_computed_tokens for r in scheduled], dtype=np.int64),
            query_lens=np.array([r.num_scheduled_tokens for r in scheduled], dtype=np.int64),
            samples=np.array([r.samples for r in scheduled], dtype=np.bool_),
            request_ids=tuple(r.request_id for r in scheduled),
            slots_in_batch=tuple(sorted({states.adapter_slot(r.request_id) for r in scheduled} - {BASE_SLOT})),
            num_drafts=_num_drafts(scheduled),
        )

    @cached_property
    def seq_lens(self) -> IntArray:
        return self.num_computed + self.query_lens

    @cached_property
    def is_decode(self) -> bool:
        """One token a request, and a sample from each."""
        return bool((self.query_lens == 1).all() and self.samples.all())

    @cached_property
    def sampled_request_ids(self) -> tuple[str, ...]:
        """[num_samples]: whose they are"""
        if self.num_drafts is not None:
            return tuple(self.request_ids[index] for index in self.sample_places.requests)
        return tuple(name for name, samples in zip(self.request_ids, self.samples, strict=True) if samples)

    @cached_property
    def sample_places(self) -> "SamplePlaces":
        if self.num_drafts is None:
            requests = self.samples.nonzero()[0]
            return SamplePlaces(requests, np.zeros_like(requests))
        counts = np.where(self.samples, 1 + self.num_drafts, 0)
        requests = np.repeat(np.arange(len(counts)), counts)
        return SamplePlaces(requests, np.repeat(counts.cumsum(), counts) - np.arange(1, counts.sum() + 1))

    @cached_property
    def sample_rows(self) -> IntArray:
        """[num_samples]"""
        return self.rows[self.sample_places.requests]

    @cached_property
    def sample_positions(self) -> IntArray:
        """[num_samples]: of the tokens to come"""
        return self.seq_lens[self.sample_places.requests] - self.sample_places.behind


class SamplePlaces(NamedTuple):
    """Which tokens of a step give samples, in batch order."""

    requests: IntArray
    """[num_samples]: whose they are, as indices into the batch"""
    behind: IntArray
    """[num_samples]: how many of the request's tokens come after them in the step"""


def _num_drafts(scheduled: Sequence[ScheduledRequest]) -> IntArray | None:
    if not any(request.num_draft_tokens for request in scheduled):
        return None
    return np.array([request.num_draft_tokens for request in scheduled], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class InputBatch:
    input_ids: Tensor
    """[num_tokens] int64"""
    positions: Tensor
    """[num_tokens] int64"""
    token_adapter_slot: Tensor
    """[num_tokens] int32; -1 = base"""
    attention: AttentionInputs
    logits_indices: Tensor
    """[num_samples] int64: the tokens whose logits give a sample"""
    sample_rows: Tensor
    """[num_samples] int64: batch order -> request row"""
    sample_positions: Tensor
    """[num_samples] int64: the position that the sampled token will have"""


def gather(step: StepRows, states: RequestStates, block_size: int) -> InputBatch:
    """Only lengths and row numbers travel from the host; the tokens and block tables are on the device already."""
    query_start = np.concatenate([[0], np.cumsum(step.query_lens)])
    token_request = np.repeat(np.arange(len(step.rows)), step.query_lens)
    positions_np = np.arange(query_start[-1]) - query_start[token_request] + step.num_computed[token_request]
    sample_tokens = query_start[1:][step.sample_places.requests] - 1 - step.sample_places.behind

    per_token = to_device(np.stack([step.rows[token_request], positions_np]), states.device)
    per_request = to_device(np.stack([step.rows, step.seq_lens]), states.device)
    per_sample = to_device(np.stack([sample_tokens, step.sample_rows, step.sample_positions]), states.device)
    token_rows, positions = per_token
    blocks = states.block_tables[token_rows, positions // block_size].to(torch.int64)
    max_seq_len = int(step.seq_lens.max())
    return InputBatch(
        input_ids=states.token_ids[token_rows, positions],
        positions=positions,
        token_adapter_slot=states.adapter_slots[token_rows],
        attention=AttentionInputs(
            query_start_loc=to_device(query_start.astype(np.int32), states.device),
            seq_lens=per_request[1].to(torch.int32),
            block_tables=states.block_tables[per_request[0], : -(-max_seq_len // block_size)],
            slot_mapping=blocks * block_size + positions % block_size,
            max_query_len=int(step.query_lens.max()),
            max_seq_len=max_seq_len,
        ),
        logits_indices=per_sample[0],
        sample_rows=per_sample[1],
        sample_positions=per_sample[2],
    )
