"""Every gateway test may ask for a real PostgreSQL (`postgres_url`, `engine`) and a real Valkey (`valkey_url`)."""

from .databases import (
    empty_postgres_url,
    engine,
    own_postgres,
    postgres_server,
    postgres_template,
    postgres_url,
    shared_postgres_url,
    valkey_server,
    valkey_url,
)

__all__ = [
    "empty_postgres_url",
    "engine",
    "own_postgres",
    "postgres_server",
    "postgres_template",
    "postgres_url",
    "shared_postgres_url",
    "valkey_server",
    "valkey_url",
]
