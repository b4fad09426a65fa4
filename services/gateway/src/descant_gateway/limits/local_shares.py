"""While Valkey is away: this process's own share of every limit, counted in memory, for the classes that may go on.

A share is the limit divided by the number of gateway processes, so that all together stay within it. Of a budget it is
that part of what was left when Valkey was last heard.
"""

import time
from typing import Final
from uuid import UUID

from msgspec import Struct

from descant_gateway.config import Outage
from descant_gateway.limits.limit import Amounts, Limit, Period, Standing

_MAX_COUNTERS: Final = 50_000


class OutagePolicy(Struct, frozen=True, kw_only=True):
    rates: Outage = Outage.REFUSE
    """Of limits per minute, and of requests at once."""
    budgets: Outage = Outage.REFUSE
    """Of limits per day and longer, and all money."""
    num_processes: int = 1
    """Gateway processes that share the limits."""

    def of(self, limit: Limit) -> Outage:
        return self.budgets if limit.is_budget else self.rates


class _Share(Struct):
    left: float
    at: float
    """time.monotonic()."""


class LocalShares:
    def __init__(self, policy: OutagePolicy) -> None:
        self._policy = policy
        self._shares: dict[str, _Share] = {}
        self._last_heard: dict[str, float] = {}
        self._granted: dict[UUID, tuple[tuple[Limit, ...], Amounts]] = {}

    @property
    def listens(self) -> bool:
        """Is what Valkey says of any use here? Saves a look at every limit of every request."""
        return bool(self._shares) or self._policy.budgets is Outage.LOCAL

    def hear(self, standings: tuple[Standing, ...]) -> None:
        """What budgets have left, from Valkey: it is there, so the shares of the last outage are over."""
        if self._shares:
            self._shares = {}
        if self._policy.budgets is Outage.REFUSE:
            return
        if len(self._last_heard) > _MAX_COUNTERS:
            self._last_heard = {}
        for standing in standings:
            if standing.limit.is_budget:
                self._last_heard[standing.limit.counter] = standing.left

    def reserve(self, charge_id: UUID, limits: tuple[Limit, ...], amounts: Amounts) -> bool:
        """Takes every amount if all classes may go on and every share has enough, else none."""
        binding = tuple(limit for limit in limits if not limit.is_shadow)
        if any(self._policy.of(limit) is Outage.REFUSE for limit in binding):
            return False
        shares = [self._share(limit) for limit in binding]
        if any(share.left < amounts.of(limit) for limit, share in zip(binding, shares, strict=True)):
            return False
        for limit, share in zip(binding, shares, strict=True):
            share.left -= amounts.of(limit)
        self._granted[charge_id] = (binding, amounts)
        return True

    def settle(self, charge_id: UUID, used: Amounts) -> None:
        """Puts what was used in the place of what was reserved; a second time it does nothing."""
        limits, reserved = self._granted.pop(charge_id, ((), used))
        for limit in limits:
            share = self._shares.get(limit.counter)
            if share is not None:
                is_over = limit.period is Period.OPEN
                share.left += reserved.of(limit) - (0 if is_over else used.of(limit))

    def _share(self, limit: Limit) -> _Share:
        now, share = time.monotonic(), self._shares.get(limit.counter)
        size = limit.capacity / self._policy.num_processes
        if share is None:
            start = self._last_heard.get(limit.counter, 0.0) / self._policy.num_processes if limit.is_budget else size
            share = self._shares[limit.counter] = _Share(start, now)
        elif limit.period is Period.MINUTE:
            share.left = min(size, share.left + (now - share.at) * size / 60)
        share.at = now
        return share
