"""A circuit breaker: a backend that keeps failing gets no requests for a while, then one at a time until it answers.

Closed -> open after failures in a row, or when half of the recent requests failed -> half-open when the pause is over:
one trial. A trial that succeeds closes it, one that fails opens it for twice as long. Time is passed in, in seconds of
any clock, so that the whole can be tested without waiting. The pattern: M. Nygard, "Release It!", 2nd ed., chapter 5.
"""

from typing import Final

FAILURES_IN_A_ROW: Final = 5
FAILING_SHARE: Final = 0.5
MIN_RECENT: Final = 20.0
"""Fewer recent requests than these say nothing about a share."""
HALF_LIFE_S: Final = 5.0
"""A request counts half as much for the share after so long."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0


class Breaker:
    """`allows` only looks; `begin` and `succeeded` or `failed` frame a request. The trial has an end in any case: if it
    tells nothing, that is `abandoned`. What others come to while it runs, which may have begun long before, is counted
    and changes nothing else.
    """

    __slots__ = ("_counted_at", "_failed", "_in_a_row", "_open_until", "_pause_s", "_recent", "_trial")

    def __init__(self) -> None:
        self._in_a_row = 0
        self._recent = 0.0
        self._failed = 0.0
        self._counted_at = 0.0
        self._open_until: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._trial = False

    @property
    def is_closed(self) -> bool:
        return self._open_until is None

    def allows(self, now: float) -> bool:
        return self._open_until is None or (now >= self._open_until and not self._trial)

    def begin(self) -> bool:
        """A request is sent. True: it is the trial, and its end must say so."""
        if self._open_until is None or self._trial:
            return False
        self._trial = True
        return True

    def succeeded(self, now: float, *, is_trial: bool = False) -> None:
        self._in_a_row = 0
        self._count(now, 0.0)
        if is_trial:
            self._close()

    def failed(self, now: float, *, is_trial: bool = False) -> None:
        self._in_a_row += 1
        self._count(now, 1.0)
        if is_trial:
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
            self._open(now)
        elif self.is_closed and (self._in_a_row >= FAILURES_IN_A_ROW or self._fails_often()):
            self._open(now)

    def abandoned(self) -> None:
        """The trial ended without telling anything of the backend: its client left. The next request is the trial."""
        self._trial = False

    def _open(self, now: float) -> None:
        self._open_until = now + self._pause_s
        self._trial = False

    def _close(self) -> None:
        self._open_until = None
        self._trial = False
        self._pause_s = FIRST_PAUSE_S
        self._recent = self._failed = 0.0

    def _count(self, now: float, failed: float) -> None:
        fade = 0.5 ** ((now - self._counted_at) / HALF_LIFE_S)
        self._recent = self._recent * fade + 1.0
        self._failed = self._failed * fade + failed
        self._counted_at = now

    def _fails_often(self) -> bool:
        return self._recent >= MIN_RECENT and self._failed >= FAILING_SHARE * self._recent
