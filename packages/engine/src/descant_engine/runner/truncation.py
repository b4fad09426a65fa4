"""min_p, then top_k, then top_p: unlikely tokens become impossible. Each is a threshold on the scores (the logits
divided by the temperature), so all three together are the highest of theirs."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from descant_engine.runner.sampling_states import RowOptions, SampleRows, User
from descant_engine.runner.transfer import to_device
from descant_engine.scheduler.plan import AdmittedRequest

NUCLEUS_PREFIX = 1024
"""top_p looks at this many of the likeliest tokens first: nearly always enough, and a fraction of a full sort."""


class Limits(NamedTuple):
    temperature: float
    min_p: float
    top_k: int
    top_p: float


@dataclass(frozen=True, slots=True)
class LimitTensors:
    index: Tensor
    """[num_users] int64: rows of the batch"""
    temperature: Tensor
    """[num_users] float32"""
    min_p: Tensor
    """[num_users] float32; 0 where it is not asked for"""
    top_k: Tensor
    """[num_users] int64; 0 where it is not asked for"""
    top_p: Tensor
    """[num_users] float32; 1 where it is not asked for"""
    asked: Limits
    """The highest of each but top_p, of which the lowest: what nobody asks for is skipped."""


class Truncation:
    def __init__(self, device: torch.device) -> None:
        self._rows = RowOptions[Limits, LimitTensors](self._gather)
        self._truncate = _truncate_on_cuda if device.type == "cuda" else truncate_by_sorting

    def add(self, row: int, request: AdmittedRequest) -> bool:
        params = request.params
        is_neutral = (params.min_p, params.top_k, params.top_p) == (0.0, 0, 1.0)
        if params.is_greedy or is_neutral:
            return self._rows.set(row, None)
        return self._rows.set(row, Limits(params.temperature, params.min_p, params.top_k, params.top_p))

    def is_used_by(self, batch: SampleRows) -> bool:
        return bool(self._rows.users(batch))

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        self._truncate(logits, self._rows.tensors(batch))

    @staticmethod
    def _gather(users: list[User[Limits]], batch: SampleRows) -> LimitTensors:
        # float64 holds every index and top_k exactly: one copy instead of two.
        table = np.array([(user.index, *user.wanted) for user in users], dtype=np.float64).T
        index, temperature, min_p, top_k, top_p = to_device(table, batch.rows.device)
        return LimitTensors(
            index=index.long(),
            temperature=temperature.float(),
            min_p=min_p.float(),
            top_k=top_k.long(),
            top_p=top_p.float(),
            asked=Limits(
                temperature=max(user.wanted.temperature for user in users),
                min_p=max(user.wanted.min_p for user in users),
                top_k=max(user.wanted.top_k for user in users),
                top_p=min(user.wanted.top_p for user in users),
            ),
        )


def _truncate_on_cuda(logits: Tensor, limits: LimitTensors) -> None:
    from descant_kernels import truncate

    truncate(logits, limits.index, limits.temperature, limits.min_p, limits.top_k, limits.top_p)


def truncate_by_sorting(logits: Tensor, limits: LimitTensors) -> None:
    """logits [num_samples, vocab] float32, changed in place."""
    scores = logits[limits.index] / limits.temperature.unsqueeze(1)
    if limits.asked.min_p > 0:
        _drop_below(scores, scores.amax(1, keepdim=True) + limits.min_p.unsqueeze(1).log())
    if limits.asked.top_k > 0:
        _drop_below(scores, _kth_largest(scores, limits.top_k.unsqueeze(1), limits.asked.top_k))
    if limits.asked.top_p < 1:
        _drop_below(scores, _nucleus_threshold(scores, limits.top_p.unsqueeze(1)))
    logits[limits.index] = logits[limits.index].masked_fill(scores == -torch.inf, -torch.inf)


def _drop_below(scores: Tensor, thresholds: Tensor) -> None:
    scores.masked_fill_(scores < thresholds, -torch.inf)


def _kth_largest(scores: Tensor, top_k: Tensor, max_top_k: int) -> Tensor:
    """[num_rows, 1]; -inf where top_k is 0"""
    largest = scores.topk(min(max_top_k, scores.shape[1])).values
    kth = largest.gather(1, (top_k - 1).clamp(0, largest.shape[1] - 1))
    return kth.masked_fill(top_k == 0, -torch.inf)


def _nucleus_threshold(scores: Tensor, top_p: Tensor) -> Tensor:
    """[num_rows, 1]: the smallest score among the fewest likeliest tokens whose probability reaches top_p."""
    log_total = scores.logsumexp(1, keepdim=True)
    if scores.shape[1] <= NUCLEUS_PREFIX:
        return _last_of_nucleus(scores.sort(dim=1, descending=True).values, log_total, top_p)
    likeliest = scores.topk(NUCLEUS_PREFIX).values
    thresholds = _last_of_nucleus(likeliest, log_total, top_p)
    reaches_on = ((likeliest - log_total).exp().sum(1) < top_p.squeeze(1)).nonzero().flatten()
    if len(reaches_on):
        everything = scores[reaches_on].sort(dim=1, descending=True).values
        thresholds[reaches_on] = _last_of_nucleus(everything, log_total[reaches_on], top_p[reaches_on])
    return thresholds


def _last_of_nucleus(likeliest: Tensor, log_total: Tensor, top_p: Tensor) -> Tensor:
    cumulative = (likeliest - log_total).exp().cumsum(1)
    # A token belongs to the nucleus if the likelier ones together have not reached top_p; the first always does.
    num_kept = 1 + (cumulative[:, :-1] < top_p).sum(1, keepdim=True)
    last = likeliest.gather(1, num_kept - 1)
    # Rounded sums may never reach 1.
    return torch.where(top_p >= 1, torch.full_like(last, -torch.inf), last)
