"""What this gateway process knows of one backend at a moment. `backends.Backends` writes it, `route` reads it."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct, field

from descant_gateway.catalogue.snapshot import Backend
from descant_gateway.routing.breaker import Breaker
from descant_wire.load import EngineLoad, Tier

FRESH_S: Final = 1.5
"""An older report is not believed: what is left is the number of our own requests."""
QUEUED_TOKENS_PER_REQUEST: Final = 1024
"""Prompt tokens still to be computed that delay a newcomer about as much as one more running request."""


class Report(Struct, frozen=True):
    """What a backend of ours said last."""

    load: EngineLoad
    at: float
    """time.monotonic()."""
    num_in_flight: int
    """Ours, at that time: it counts them too."""


class BackendState(Struct):
    is_healthy: bool = True
    """As the last probes found it."""
    num_silent_probes: int = 0
    """The last so many were not answered in time."""
    num_in_flight: int = 0
    """Requests of this process that it is answering."""
    num_sent: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    report: Report | None = None
    adapters: Mapping[str, Tier] = {}
    """Of the last report that named them."""

    def is_available(self, now: float) -> bool:
        return self.is_healthy and self.breaker.allows(now)

    def fresh_report(self, now: float) -> Report | None:
        return self.report if self.report is not None and now - self.report.at <= FRESH_S else None

    def num_occupied(self, now: float) -> int:
        """Requests that it has, those of other gateways too where it says so."""
        report = self.fresh_report(now)
        if report is None:
            return self.num_in_flight
        told = report.load.num_running + report.load.num_waiting
        return max(self.num_in_flight, told + self.num_in_flight - report.num_in_flight)

    def pressure(self, now: float) -> float:
        """How busy, in requests."""
        report = self.fresh_report(now)
        queued = 0.0 if report is None else report.load.num_queued_tokens / QUEUED_TOKENS_PER_REQUEST
        return self.num_occupied(now) + queued

    def is_full(self, backend: Backend, now: float) -> bool:
        """Whether one more request would have to wait there."""
        return self.num_occupied(now) >= self.capacity(backend, now)

    def capacity(self, backend: Backend, now: float) -> float:
        """Requests at once: as configured, else what it says it runs, else no bound."""
        if backend.max_in_flight is not None:
            return backend.max_in_flight
        report = self.fresh_report(now)
        return float("inf") if report is None else report.load.max_running

    def tier(self, adapter: str, now: float) -> Tier | None:
        """Where it holds the adapter; None: nowhere, or nobody knows any more."""
        return None if self.fresh_report(now) is None else self.adapters.get(adapter)


UNKNOWN: Final = BackendState()
