"""What is kept, where, and for how long: the catalogue, the ledger, files, batches and responses."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

from descant_gateway.config.environment import EnvironmentReader
from descant_gateway.config.parsers import positive_int, seconds, yes_or_no


@dataclass(frozen=True, kw_only=True)
class CatalogueConfig:
    file: Path | None = None
    """Backends, models and aliases as code (descant.toml); followed as it changes. None: the admin API alone."""
    poll_s: float = 3.0
    """Behind the notifications, in case one is lost."""

    @classmethod
    def read(cls, read: EnvironmentReader) -> Self:
        return cls(
            file=read.value("DESCANT_CATALOGUE_FILE", cls.file, Path),
            poll_s=read.value("DESCANT_CATALOGUE_POLL_S", cls.poll_s, seconds),
        )


@dataclass(frozen=True, kw_only=True)
class LedgerConfig:
    spool_dir: Path = Path("var/ledger-spool")
    """Usage records go here while PostgreSQL is away. Several processes may share the folder."""
    keep_days: int = 400
    """Older days of the ledger are dropped; their sums by the hour stay."""

    @classmethod
    def read(cls, read: EnvironmentReader) -> Self:
        return cls(
            spool_dir=read.value("DESCANT_LEDGER_SPOOL_DIR", cls.spool_dir, Path),
            keep_days=read.value("DESCANT_LEDGER_KEEP_DAYS", cls.keep_days, positive_int),
        )


@dataclass(frozen=True, kw_only=True)
class StoredConfig:
    """Of files, batches and stored responses."""

    retention_days: int = 30
    """Files, stored responses and ended batches are kept for so long."""
    max_file_bytes: int = 200 << 20
    """Of one uploaded file."""
    max_team_file_bytes: int = 10 << 30
    """Of all files of a team."""
    batch_concurrency: int = 16
    """Lines of batches that this process runs at once; an eighth of it while other requests run."""
    batch_lease_s: float = 30.0
    """What a gateway that died ran of batches is run by another after this."""

    sealed: bool = True
    """Encrypted at rest, by a key of each team's. False while gateways that can't read what is sealed still run."""

    @property
    def keep(self) -> timedelta:
        return timedelta(days=self.retention_days)

    @classmethod
    def read(cls, read: EnvironmentReader) -> Self:
        return cls(
            retention_days=read.value("DESCANT_RETENTION_DAYS", cls.retention_days, positive_int),
            max_file_bytes=read.value("DESCANT_MAX_FILE_BYTES", cls.max_file_bytes, positive_int),
            max_team_file_bytes=read.value("DESCANT_MAX_TEAM_FILE_BYTES", cls.max_team_file_bytes, positive_int),
            batch_concurrency=read.value("DESCANT_BATCH_CONCURRENCY", cls.batch_concurrency, positive_int),
            batch_lease_s=read.value("DESCANT_BATCH_LEASE_S", cls.batch_lease_s, seconds),
            sealed=read.value("DESCANT_STORED_SEALED", cls.sealed, yes_or_no),
        )
