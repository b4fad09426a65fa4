"""The whole configuration of a gateway."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from descant_gateway.config.databases import DatabaseConfig, ValkeyConfig
from descant_gateway.config.environment import EnvironmentReader
from descant_gateway.config.identity import IdentityConfig
from descant_gateway.config.limits import LimitsConfig, QueueConfig
from descant_gateway.config.process import ProcessConfig
from descant_gateway.config.records import CatalogueConfig, LedgerConfig, StoredConfig
from descant_gateway.config.upstreams import UpstreamsConfig


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Read once at the start. Each part names its variables, DESCANT_*; a secret may instead be in the file that
    DESCANT_<SECRET>_FILE names."""

    database: DatabaseConfig
    valkey: ValkeyConfig
    identity: IdentityConfig
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    upstreams: UpstreamsConfig = field(default_factory=UpstreamsConfig)
    catalogue: CatalogueConfig = field(default_factory=CatalogueConfig)
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    stored: StoredConfig = field(default_factory=StoredConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Self:
        """Raises ConfigError with every missing or malformed variable, never a value that could be secret."""
        read = EnvironmentReader(env)
        config = cls(
            database=DatabaseConfig.read(read),
            valkey=ValkeyConfig.read(read),
            identity=IdentityConfig.read(read),
            limits=LimitsConfig.read(read),
            queue=QueueConfig.read(read),
            upstreams=UpstreamsConfig.read(read),
            catalogue=CatalogueConfig.read(read),
            ledger=LedgerConfig.read(read),
            stored=StoredConfig.read(read),
            process=ProcessConfig.read(read),
        )
        read.raise_problems()
        return config
