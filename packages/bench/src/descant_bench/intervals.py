"""Intervals of time that may overlap, since kernels run on several streams."""

from collections.abc import Iterable
from typing import NamedTuple


class Occupancy(NamedTuple):
    span: float
    """From the first start to the last end."""
    busy: float
    """The time in which at least one interval is open."""
    total: float
    """Of all lengths; what exceeds `busy` ran beside something else."""

    @property
    def idle(self) -> float:
        return self.span - self.busy

    @property
    def overlap(self) -> float:
        return self.total - self.busy


def occupancy(intervals: Iterable[tuple[float, float]]) -> Occupancy:
    """Of (start, end) pairs in any order."""
    ordered = sorted(intervals)
    if not ordered:
        return Occupancy(0.0, 0.0, 0.0)
    busy, reached = 0.0, ordered[0][0]
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return Occupancy(reached - ordered[0][0], busy, sum(end - start for start, end in ordered))
