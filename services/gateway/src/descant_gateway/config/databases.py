"""Where the gateway keeps what is true (PostgreSQL) and what is counted (Valkey)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from descant_gateway.config.environment import EnvironmentReader
from descant_gateway.config.parsers import positive_int, postgres_url, seconds, valkey_url, yes_or_no
from descant_gateway.config.secret import Secret


@dataclass(frozen=True, kw_only=True)
class DatabaseConfig:
    """PostgreSQL."""

    url: Secret
    """postgresql://user:password@host:port/database; a folder of unix sockets as ?host=/path."""
    pool_size: int = 4
    """Connections of each of two pools: for the admin API and usage, and for what clients leave. The request path uses
    none."""
    listen: bool = True
    """False behind a pooler that knows no LISTEN (PgBouncer in transaction mode): Valkey tells of changes alone."""

    @property
    def max_connections(self) -> int:
        """That one process opens: besides the pools, two for the catalogue and two that sum usage and reconcile."""
        return 2 * self.pool_size + 4

    @classmethod
    def read(cls, read: EnvironmentReader) -> Self:
        return cls(
            url=read.secret("DESCANT_DATABASE_URL", postgres_url),
            pool_size=read.value("DESCANT_DATABASE_POOL_SIZE", cls.pool_size, positive_int),
            listen=read.value("DESCANT_DATABASE_LISTEN", cls.listen, yes_or_no),
        )


@dataclass(frozen=True, kw_only=True)
class ValkeyConfig:
    url: Secret
    """redis:// (or rediss://, valkey://, unix://)."""
    timeout_s: float = 0.25
    """One operation; longer counts as an outage."""

    @classmethod
    def read(cls, read: EnvironmentReader) -> Self:
        return cls(
            url=read.secret("DESCANT_VALKEY_URL", valkey_url),
            timeout_s=read.value("DESCANT_VALKEY_TIMEOUT_S", cls.timeout_s, seconds),
        )


def database_url(env: Mapping[str, str]) -> Secret:
    """DESCANT_DATABASE_URL alone, for what needs nothing else. Raises ConfigError."""
    read = EnvironmentReader(env)
    url = read.secret("DESCANT_DATABASE_URL", postgres_url)
    read.raise_problems()
    return url
