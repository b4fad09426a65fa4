"""What a step takes, learnt from those that ran: so much at all, with prompts, a request and a token."""

from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MIN_STEPS = 24
"""Measured before anything is foretold."""
MAX_STEPS = 128
"""Remembered of either kind, with prompts and without."""
REFIT_STEPS = 32
OUTLIER = 2.5
"""Times what was expected: a compilation, a garbage collection, a busy machine. Not learnt from."""
CERTAIN = 0.9
"""Of what is expected. Whoever plans by it is early rather than late: if late, the device's pause would be taken for
a part of the step, and the next plan come later still."""
_RIDGE = 1e-4


class StepWork(NamedTuple):
    num_requests: int
    num_more_tokens: int
    """Beyond one for each request."""

    @property
    def terms(self) -> tuple[int, int, int, int]:
        return 1, int(self.num_more_tokens > 0), self.num_requests, self.num_more_tokens


class StepCosts(NamedTuple):
    """Seconds."""

    step: float
    mixed_step: float
    """Added where there are more tokens than requests."""
    request: float
    more_token: float

    def of(self, work: StepWork) -> float:
        return sum(cost * count for cost, count in zip(self, work.terms, strict=True))


class StepTimes:
    """Measures steps by when they were planned and when their results came; costs next to nothing until asked.

    A step begins when it is planned, or when the one before it ended, if that is later.
    """

    def __init__(self) -> None:
        self._measured: tuple[deque[tuple[StepWork, float]], ...] = (deque(maxlen=MAX_STEPS), deque(maxlen=MAX_STEPS))
        self._under_way: dict[int, tuple[StepWork, float]] = {}
        """Step id -> what it does, and when it was planned."""
        self._last_end = 0.0
        self._num_new = 0
        self._costs: StepCosts | None = None

    def planned(self, step_id: int, work: StepWork, now: float) -> None:
        self._under_way[step_id] = work, now

    def ended(self, step_id: int, now: float) -> None:
        """A step that was never told of is not measured."""
        if (step := self._under_way.pop(step_id, None)) is not None:
            work, planned = step
            self._measured[work.num_more_tokens > 0].append((work, now - max(planned, self._last_end)))
            self._num_new += 1
        self._last_end = now

    @property
    def costs(self) -> StepCosts | None:
        """None until enough is known."""
        if self._num_new >= (MIN_STEPS if self._costs is None else REFIT_STEPS):
            self._num_new = 0
            self._costs = _fit([sample for samples in self._measured for sample in samples])
        return self._costs

    def busy_until(self) -> float:
        """Until when the steps under way will last at least; 0 if none is, or it can't be told."""
        if not self._under_way or (costs := self.costs) is None:
            return 0.0
        end = self._last_end
        for work, planned in self._under_way.values():
            end = max(planned, end) + CERTAIN * costs.of(work)
        return end


def _fit(samples: list[tuple[StepWork, float]]) -> StepCosts:
    """Least squares of relative errors, twice: the second time without outliers."""
    terms = np.array([work.terms for work, _ in samples], dtype=np.float64)
    seconds = np.maximum(np.array([seconds for _, seconds in samples]), 1e-6)
    usual = seconds < OUTLIER * (terms @ _least_squares(terms, seconds))
    costs = _least_squares(terms[usual], seconds[usual])
    return StepCosts(*costs.tolist())


def _least_squares(terms: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """None of the costs is negative: a term that would be is left out."""
    scale = np.maximum(np.sqrt((terms**2).mean(axis=0)), 1e-9)
    weighted = terms / scale / seconds[:, None]
    normal = weighted.T @ weighted
    normal += _RIDGE * np.trace(normal) * np.eye(len(normal))
    right = weighted.sum(axis=0)
    kept = np.full(len(right), True)
    while True:
        costs: npt.NDArray[np.float64] = np.zeros(len(right))
        costs[kept] = np.linalg.solve(normal[np.ix_(kept, kept)], right[kept])
        if (costs >= 0).all():
            costs /= scale
            return costs
        kept &= costs >= 0
