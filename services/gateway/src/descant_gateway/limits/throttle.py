"""How often one caller may do one thing on this process: what stands before routes that reserve no limits in Valkey.

GCRA, the leaky bucket as one number: https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm
"""

import math
import time
from collections import OrderedDict
from typing import Final

from descant_wire.errors import ApiError, ErrorDetail

MAX_CALLERS: Final = 10_000
BURST_S: Final = 10.0
"""What was not used within this time may come at once."""


class Throttle:
    """Keeps, for each (thing, caller), when its bucket will be empty again. The least recent are forgotten first."""

    def __init__(self) -> None:
        self._empty_at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def take(self, thing: str, caller: str, per_minute: int) -> None:
        """Raises a 429 with the exact time to wait."""
        now = time.monotonic()
        interval = 60.0 / per_minute
        empty_at = max(now, self._empty_at.get((thing, caller), now)) + interval
        wait_s = empty_at - now - max(BURST_S, interval)
        if wait_s > 0:
            raise _too_many(wait_s)
        self._empty_at[thing, caller] = empty_at
        self._empty_at.move_to_end((thing, caller))
        if len(self._empty_at) > MAX_CALLERS:
            self._empty_at.popitem(last=False)


def _too_many(wait_s: float) -> ApiError:
    message = f"Too many requests of this kind. Try again in {math.ceil(wait_s)} s."
    return ApiError(
        429, ErrorDetail(message=message, type="requests", code="rate_limit_exceeded"), retry_after_s=wait_s
    )
