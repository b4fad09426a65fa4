"""What each request asked of the sampler, one class a feature. A feature owns its rows' state and its hook; the
sampler only fans out. To add one: write a class with `add` and `apply`, and put it in `Sampler.features`.

All hooks change `logits` [num_samples, vocab] float32 in place. The host knows which rows use a feature, so a
batch in which nobody does costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from descant_engine.runner.request_states import RequestStates
from descant_engine.runner.transfer import to_device
from descant_engine.scheduler.plan import AdmittedRequest

T = TypeVar("T")

NUCLEUS_PREFIX = 1024
"""top_p looks at this many of the likeliest tokens first: nearly always enough, and a fraction of a full sort."""


@dataclass(frozen=True, slots=True)
class SampleRows:
    """The rows that sample in this step, in batch order."""

    row_ids: tuple[int, ...]
    positions: tuple[int, ...]
    """The sampled token's position, which is also the number of tokens before it."""
    states: RequestStates


class SamplingFeature(Protocol):
    def add(self, row: int, request: AdmittedRequest) -> bool:
        """Remember (or forget, if it does not ask for the feature) what `row` wants. Rows are reused.

        Returns whether it may change the row's logits.
        """

    def apply(self, logits: Tensor, batch: SampleRows) -> None: ...


class Penalties:
    """repetition_penalty over prompt and output, presence and frequency over the output.

    Counts are taken from the rows' tokens at each step: no state to keep true under preemption.
    """

    def __init__(self) -> None:
        self._of_row: dict[int, tuple[float, float, float]] = {}

    def add(self, row: int, request: AdmittedRequest) -> bool:
        params = request.params
        wanted = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        return _remember(self._of_row, row, wanted, neutral=(1.0, 0.0, 0.0))

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        for index in _users(self._of_row, batch):
            repetition, presence, frequency = self._of_row[batch.row_ids[index]]
            row, length = batch.row_ids[index], batch.positions[index]
            tokens = batch.states.token_ids[row, :length]
            is_output = (torch.arange(length, device=logits.device) >= batch.states.num_prompt_tokens[row]).float()
            scores = logits[index]
            known = torch.zeros_like(scores).index_fill_(0, tokens, 1.0)
            output = torch.zeros_like(scores).scatter_add_(0, tokens, is_output)
            penalized = torch.where(scores > 0, scores / repetition, scores * repetition)
            scores = torch.where(known > 0, penalized, scores)
            logits[index] = scores - frequency * output - presence * (output > 0)


class MinTokens:
    """Tokens that would end the request are impossible until it has min_tokens of output."""

    def __init__(self) -> None:
        self._of_row: dict[int, tuple[int, Tensor]] = {}

    def add(self, row: int, request: AdmittedRequest) -> bool:
        self._of_row.pop(row, None)
        if request.params.min_tokens and request.stop_token_ids:
            first_free_position = request.num_prompt_tokens + request.params.min_tokens
            self._of_row[row] = (first_free_position, torch.tensor(request.stop_token_ids))
        return row in self._of_row

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        for index in _users(self._of_row, batch):
            first_free_position, stop_ids = self._of_row[batch.row_ids[index]]
            if batch.positions[index] < first_free_position:
                logits[index, stop_ids.to(logits.device, non_blocking=True)] = -torch.inf


class Temperature:
    """Divides the logits. Greedy rows (temperature 0) are left alone: they take the largest logit."""

    def __init__(self) -> None:
        self._of_row: dict[int, float] = {}

    def add(self, row: int, request: AdmittedRequest) -> bool:
        wanted = 1.0 if request.params.is_greedy else request.params.temperature
        return _remember(self._of_row, row, wanted, neutral=1.0)

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        if not _users(self._of_row, batch):
            return
        divisors = np.array([self._of_row.get(row, 1.0) for row in batch.row_ids], dtype=np.float32)
        logits.div_(to_device(divisors, logits.device).unsqueeze(1))


class Truncation:
    """min_p, then top_k, then top_p: unlikely tokens become impossible."""

    def __init__(self) -> None:
        self._of_row: dict[int, tuple[float, int, float]] = {}

    def add(self, row: int, request: AdmittedRequest) -> bool:
        params = request.params
        wanted = (0.0, 0, 1.0) if params.is_greedy else (params.min_p, params.top_k, params.top_p)
        return _remember(self._of_row, row, wanted, neutral=(0.0, 0, 1.0))

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        for index in _users(self._of_row, batch):
            min_p, top_k, top_p = self._of_row[batch.row_ids[index]]
            scores = logits[index]
            if min_p > 0.0:
                _drop_below(scores, scores.max() + float(np.log(min_p)))
            if 0 < top_k < scores.numel():
                _drop_below(scores, scores.topk(top_k).values[-1])
            if top_p < 1.0:
                _drop_below(scores, _nucleus_threshold(scores, top_p))


def _drop_below(scores: Tensor, threshold: Tensor) -> None:
    scores.masked_fill_(scores < threshold, -torch.inf)


def _nucleus_threshold(scores: Tensor, top_p: float) -> Tensor:
    """The smallest score among the fewest likeliest tokens whose probability reaches top_p."""
    log_total = scores.logsumexp(0)
    likeliest = scores.topk(min(NUCLEUS_PREFIX, scores.numel())).values
    cumulative = (likeliest - log_total).exp().cumsum(0)
    if likeliest.numel() < scores.numel() and cumulative[-1] < top_p:
        likeliest = scores.sort(descending=True).values
        cumulative = (likeliest - log_total).exp().cumsum(0)
    # A token belongs to the nucleus if the likelier ones together have not reached top_p; the first always does.
    num_kept = 1 + (cumulative[:-1] < top_p).sum()
    return likeliest[num_kept - 1]


def _remember(of_row: dict[int, T], row: int, wanted: T, neutral: T) -> bool:
    if wanted == neutral:
        of_row.pop(row, None)
    else:
        of_row[row] = wanted
    return wanted != neutral


def _users(of_row: dict[int, T], batch: SampleRows) -> Sequence[int]:
    """Batch indices of the rows that use a feature."""
    if not of_row:
        return ()
    return [index for index, row in enumerate(batch.row_ids) if row in of_row]
