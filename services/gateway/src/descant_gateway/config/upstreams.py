"""How long backends may take, and how they are asked whether they are well."""

from dataclasses import dataclass
from typing import Self

from descant_gateway.config.environment import EnvironmentReader
from descant_gateway.config.parsers import seconds


@dataclass(frozen=True, kw_only=True)
class UpstreamsConfig:
    connect_timeout_s: float = 2.0
    first_byte_timeout_s: float = 120.0
    """From the request sent to the first byte of the reply; covers queueing and prefill in the engine."""
    idle_timeout_s: float = 60.0
    """Between two chunks of a stream."""
    deadline_s: float = 600.0
    """The whole of any reply, streamed or not."""
    health_interval_s: float = 2.0
    """Between two health probes of a backend."""

    @classmethod
    def read(cls, read: EnvironmentReader) -> Self:
        return cls(
            connect_timeout_s=read.value("DESCANT_UPSTREAM_CONNECT_TIMEOUT_S", cls.connect_timeout_s, seconds),
            first_byte_timeout_s=read.value("DESCANT_UPSTREAM_FIRST_BYTE_TIMEOUT_S", cls.first_byte_timeout_s, seconds),
            idle_timeout_s=read.value("DESCANT_UPSTREAM_IDLE_TIMEOUT_S", cls.idle_timeout_s, seconds),
            deadline_s=read.value("DESCANT_UPSTREAM_DEADLINE_S", cls.deadline_s, seconds),
            health_interval_s=read.value("DESCANT_HEALTH_INTERVAL_S", cls.health_interval_s, seconds),
        )
