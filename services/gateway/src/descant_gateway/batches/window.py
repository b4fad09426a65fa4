"""How many lines run at once: more while nobody waits for them, half as many where somebody does.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), as TCP finds its share of a path without being told.
Lines that would only wait at an engine are left in the database, where they cost nobody anything.
"""

from typing import Final

from descant_wire.load import EngineLoad

SHARE_BESIDE_OTHERS: Final = 8
"""While other requests run, only one in so many of the places for lines is used,"""
RECENT_S: Final = 5.0
"""and for so long after the last of them: people who chat pause between two questions."""
DECREASE_EVERY_S: Final = 1.0
"""Not more often: what is taken back takes a while to show."""


class Window:
    """Times are seconds of a clock that never goes back."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 1.0
        self._others_seen = -RECENT_S
        self._decreased = -DECREASE_EVERY_S

    def room(self, num_lines: int, now: float, *, others_run: bool, anybody_waits: bool) -> int:
        """How many more lines may run beside `num_lines`. `anybody_waits`: in the queue of a backend."""
        if others_run:
            self._others_seen = now
        if anybody_waits and now - self._decreased >= DECREASE_EVERY_S:
            self._decreased = now
            self._size = max(1.0, self._size / 2)
        limit = self._limit
        if now - self._others_seen < RECENT_S:
            limit = max(1, limit // SHARE_BESIDE_OTHERS)
        self._size = min(self._size, float(limit))
        return int(self._size) - num_lines

    def note_answer(self) -> None:
        """A line was answered: after a window of them there may be one more."""
        self._size += 1 / self._size


def serves_others(load: EngineLoad) -> bool:
    """Whether somebody waits for one of the engine's requests, through whichever gateway. Only an engine that verifies
    identities knows which of them are lines of batches."""
    return load.verifies_identity and load.num_running + load.num_waiting > load.num_below_default
