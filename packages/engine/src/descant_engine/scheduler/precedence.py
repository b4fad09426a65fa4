"""Who gives way to whom when a step's time is short.

Whoever's priority is lower than somebody's who is here, or was a moment ago, gives way; so does a share that runs
clearly more than its part of the batch, while others, who run no more than theirs, come and go. Work that was all
there before any of it ran disturbs nobody who comes: then no share gives way.
"""

from collections import Counter

from descant_engine.request import Request
from descant_engine.share import Share

RECENT_S = 10.0
"""For so long after a share within its part came, or the last request of a priority ended, the next is expected."""


class Precedence:
    """Follows who is here and who runs. Answers hold for a step, from `begin_step` on."""

    def __init__(self, num_places: int) -> None:
        self._num_places = num_places
        self._num_unfinished: Counter[int] = Counter()
        """By priority."""
        self._last_seen: dict[int, float] = {}
        """Priority -> when the last of its requests ended, for those that nobody has now."""
        self._first = 0
        """The highest priority, the smallest number, that is here or expected."""
        self._has_lower = False
        self._num_running: Counter[Share] = Counter()
        self._over: frozenset[Share] = frozenset()
        self._is_stale = False
        """Whether `_over` may have changed."""
        self._spared_until = 0.0
        self._spares_shares = False

    def join(self, request: Request, now: float) -> None:
        """The request has come."""
        self._num_unfinished[request.spec.priority] += 1
        self._last_seen.pop(request.spec.priority, None)
        self._is_stale = True
        if request.share not in (over := self._over_part()) and over:
            self._spared_until = now + RECENT_S

    def leave(self, request: Request, now: float) -> None:
        priority = request.spec.priority
        self._num_unfinished[priority] -= 1
        if self._num_unfinished[priority] == 0:
            del self._num_unfinished[priority]
            self._last_seen[priority] = now

    def num_below(self, priority: int) -> int:
        """Unfinished requests of lower priorities, which are larger numbers."""
        return sum(count for each, count in self._num_unfinished.items() if each > priority)

    def run(self, share: Share, difference: int) -> None:
        """One request of the share more, or less, is in the batch."""
        share.run(difference)
        self._num_running[share] += difference
        if self._num_running[share] == 0:
            del self._num_running[share]
        self._is_stale = True

    def begin_step(self, now: float) -> None:
        for priority in [p for p, seen in self._last_seen.items() if seen < now - RECENT_S]:
            del self._last_seen[priority]
        self._first = min((*self._num_unfinished, *self._last_seen), default=0)
        self._has_lower = max(self._num_unfinished, default=self._first) > self._first
        self._spares_shares = now < self._spared_until and bool(self._over_part())

    @property
    def is_needed(self) -> bool:
        """Whether anybody gives way in this step."""
        return self._has_lower or self._spares_shares

    @property
    def shares(self) -> frozenset[Share]:
        """Those that give way in this step."""
        return self._over if self._spares_shares else frozenset()

    def is_lower(self, request: Request) -> bool:
        return request.spec.priority > self._first

    def gives_way(self, request: Request) -> bool:
        return request.spec.priority > self._first or request.share in self.shares

    def _over_part(self) -> frozenset[Share]:
        if self._is_stale:
            self._is_stale = False
            self._over = frozenset(share for share in self._num_running if share.is_over_part(self._num_places))
        return self._over
