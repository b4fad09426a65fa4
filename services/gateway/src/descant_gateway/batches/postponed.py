"""Batches that could not be begun, or ended: they wait a while, so that they keep no other batch from its turn."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from msgspec import Struct

from descant_gateway.store.session import is_outage

FIRST_PAUSE_S: Final = 5.0
"""Twice as long after each further failure,"""
LAST_PAUSE_S: Final = 300.0
"""up to this."""
FORGET_AFTER_S: Final = 600.0
"""Whoever did not come back for so long was dealt with by another gateway."""


class _Wait(Struct, frozen=True):
    until: float
    num_failures: int


class Postponed:
    """Known to this process only: another gateway may try in the meantime, and counts for itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waits: dict[str, _Wait] = {}

    @property
    def batch_ids(self) -> list[str]:
        """Those that wait now."""
        now = self._clock()
        self._waits = {key: wait for key, wait in self._waits.items() if now - wait.until < FORGET_AFTER_S}
        return [key for key, wait in self._waits.items() if wait.until > now]

    def num_failures(self, batch_id: str) -> int:
        """Outages of PostgreSQL don't count: they are not the batch's."""
        return self._waits[batch_id].num_failures if batch_id in self._waits else 0

    @contextmanager
    def trying(self, batch_id: str) -> Iterator[None]:
        """Whatever is raised within postpones the batch, and is raised."""
        try:
            yield
        except Exception as error:
            self._postpone(batch_id, self.num_failures(batch_id) + (not is_outage(error)))
            raise
        self._waits.pop(batch_id, None)

    def _postpone(self, batch_id: str, num_failures: int) -> None:
        pause_s = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** max(0, num_failures - 1))
        self._waits[batch_id] = _Wait(self._clock() + pause_s, num_failures)
