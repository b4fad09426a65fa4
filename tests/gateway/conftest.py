"""Every gateway test may ask for a real PostgreSQL (`postgres_url`, `engine`) and a real Valkey (`valkey_url`).

And for a `gateway` on a socket that serves a `world` of one model on one `upstream`: a module has its own of what
differs.
"""

from collections.abc import AsyncIterator

import pytest

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
from .gateway_under_test import Running, World, running_gateway
from .upstream import Upstream, running

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


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with running(Upstream()) as upstream:
        yield upstream


@pytest.fixture
def world(upstream: Upstream) -> World:
    world = World()
    world.add_model("m", upstream.backend)
    return world


@pytest.fixture
async def gateway(world: World, valkey_url: str) -> AsyncIterator[Running]:
    async with running_gateway(world, valkey_url) as gateway:
        yield gateway
