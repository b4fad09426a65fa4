"""What bounds requests beyond what their limits say."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from descant_gateway.config.environment import EnvironmentReader
from descant_gateway.config.parsers import networks, positive_int, seconds
from descant_gateway.egress.address import Networks


class Outage(StrEnum):
    """What becomes of requests whose limits can't be checked."""

    REFUSE = "refuse"
    """503 with Retry-After."""
    LOCAL = "local"
    """Served within this process's share."""


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    outage_rates: Outage = Outage.REFUSE
    """While Valkey is away, what becomes of keys with limits per minute or on requests at once: refuse or local."""
    outage_budgets: Outage = Outage.REFUSE
    """The same for limits per day and longer, and all money."""
    lease_s: float = 30.0
    """What the requests of a gateway that died held comes back within this."""
    webhook_networks: Networks = ()
    """Internal networks that organizations' webhooks may lead to; without any, only the public internet."""

    @classmethod
    def read(cls, read: EnvironmentReader) -> Self:
        return cls(
            outage_rates=read.value("DESCANT_VALKEY_OUTAGE_RATES", cls.outage_rates, outage),
            outage_budgets=read.value("DESCANT_VALKEY_OUTAGE_BUDGETS", cls.outage_budgets, outage),
            lease_s=read.value("DESCANT_LIMIT_LEASE_S", cls.lease_s, seconds),
            webhook_networks=read.value("DESCANT_WEBHOOK_NETWORKS", cls.webhook_networks, networks),
        )


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    length: int = 1000
    """Requests that may wait for each set of saturated backends, in this process; more are refused with 503."""
    timeout_s: float = 30.0
    """How long each may wait."""

    @classmethod
    def read(cls, read: EnvironmentReader) -> Self:
        return cls(
            length=read.value("DESCANT_QUEUE_LENGTH", cls.length, positive_int),
            timeout_s=read.value("DESCANT_QUEUE_TIMEOUT_S", cls.timeout_s, seconds),
        )


def outage(text: str) -> Outage:
    try:
        return Outage(text.lower())
    except ValueError:
        raise ValueError(f"must be one of {', '.join(Outage)}") from None
