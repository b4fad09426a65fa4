"""The gateway's configuration: read once from the environment at start, frozen from then on. One file a concern."""

from descant_gateway.config.databases import DatabaseConfig, ValkeyConfig, database_url
from descant_gateway.config.environment import ConfigError
from descant_gateway.config.gateway import GatewayConfig
from descant_gateway.config.identity import IdentityConfig, OidcConfig
from descant_gateway.config.limits import LimitsConfig, Outage, QueueConfig
from descant_gateway.config.process import ProcessConfig
from descant_gateway.config.records import CatalogueConfig, LedgerConfig, StoredConfig
from descant_gateway.config.secret import Secret
from descant_gateway.config.upstreams import UpstreamsConfig
from descant_gateway.egress.address import Networks

__all__ = [
    "CatalogueConfig",
    "ConfigError",
    "DatabaseConfig",
    "GatewayConfig",
    "IdentityConfig",
    "LedgerConfig",
    "LimitsConfig",
    "Networks",
    "OidcConfig",
    "Outage",
    "ProcessConfig",
    "QueueConfig",
    "Secret",
    "StoredConfig",
    "UpstreamsConfig",
    "ValkeyConfig",
    "database_url",
]
