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
"""On the CPU, top_p looks at this many of the likeliest tokens first: nearly always enough, and a fraction of a full
sort. On CUDA, finding out would make the host wait."""


class Limits(NamedTuple):
    temperature: float
    min_p: float
    top_k: int
    top_p: float


@dataclass(frozen=True, slots=True)
class TruncationTensors:
    index: Tensor
    """[num_users] int64: rows of the batch"""
    temperature: Tensor
    """[num_users, 1] float32, as the others"""
    log_min_p: Tensor | None
    """-inf where it is not asked for; None where nobody does, as for the others."""
    top_k: Tensor | None
    """int64; 0 where it is not asked for"""
    top_p: Tensor | None
    """1 where it is not asked for"""
    max_top_k: int


class Truncation:
    def __init__(self) -> None:
        self._rows = RowOptions[Limits, TruncationTensors](self._gather)

    def add(self, row: int, request: AdmittedRequest) -> bool:
        params = request.params
        is_neutral = (params.min_p, params.top_k, params.top_p) == (0.0, 0, 1.0)
        if params.is_greedy or is_neutral:
            return self._rows.set(row, None)
        return self._rows.set(row, Limits(params.temperature, params.min_p, params.top_k, params.top_p))

    def is_used_by(self, batch: SampleRows) -> bool:
        return bool(self._rows.users(batch))

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        wanted = self._rows.tensors(batch)
        scores = logits[wanted.index] / wanted.temperature
        if wanted.log_min_p is not None:
            _drop_below(scores, scores.amax(1, keepdim=True) + wanted.log_min_p)
        if wanted.top_k is not None:
            _drop_below(scores, _kth_largest(scores, wanted.top_k, wanted.max_top_k))
        if wanted.top_p is not None:
            _drop_below(scores, _nucleus_threshold(scores, wanted.top_p))
        logits[wanted.index] = logits[wanted.index].masked_fill(scores == -torch.inf, -torch.inf)

    @staticmethod
    def _gather(users: list[User[Limits]], batch: SampleRows) -> TruncationTensors:
        temperature, min_p, top_k, top_p = np.array([user.wanted for user in users], dtype=np.float64).T
        with np.errstate(divide="ignore"):
            table = np.stack([[user.index for user in users], temperature, np.log(min_p), top_k, top_p])
        index, *columns = to_device(table, batch.rows.device)
        temperatures, log_min_p, top_ks, top_ps = (column.unsqueeze(1) for column in columns)
        return TruncationTensors(
            index=index.long(),
            temperature=temperatures.float(),
            log_min_p=log_min_p.float() if min_p.any() else None,
            top_k=top_ks.long() if top_k.any() else None,
            top_p=top_ps.float() if (top_p < 1).any() else None,
            max_top_k=int(top_k.max()),
        )


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
    if scores.is_cuda or scores.shape[1] <= NUCLEUS_PREFIX:
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
