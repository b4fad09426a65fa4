"""Opens what clients leave with the gateway: files, batches, responses, and the work on them that nobody waits for."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from litestar import Router
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.background import BackgroundResponses
from descant_gateway.batches.runner import BatchRunner, BatchSettings
from descant_gateway.config import GatewayConfig
from descant_gateway.dialects.responses import ResponsesDialect
from descant_gateway.pipeline import Gateway
from descant_gateway.routes.stored import stored_router
from descant_gateway.routes.stored.bounds import StoreBounds
from descant_gateway.sealing import Sealer
from descant_gateway.store.session import create_engine
from descant_gateway.store.team_keys import TeamKeys
from descant_gateway.store.vault import Vaults


@dataclass(frozen=True, slots=True)
class Storage:
    engine: AsyncEngine
    vaults: Vaults
    responses: ResponsesDialect


@asynccontextmanager
async def open_storage(config: GatewayConfig, sealer: Sealer) -> AsyncIterator[Storage]:
    """With connections of its own: large files and many lines keep those of others free."""
    engine = create_engine(config.database.url, pool_size=config.database.pool_size)
    try:
        vaults = Vaults(TeamKeys(engine, sealer), seals=config.stored.sealed)
        yield Storage(engine, vaults, ResponsesDialect(engine, vaults, config.stored.keep))
    finally:
        await engine.dispose()


@asynccontextmanager
async def open_stored_work(config: GatewayConfig, storage: Storage, gateway: Gateway) -> AsyncIterator[Router]:
    """Batches and background responses, run through `gateway`; their routes."""
    async with AsyncExitStack() as stack:
        background = BackgroundResponses(storage.responses, storage.engine, storage.vaults, gateway)
        storage.responses.background = background
        stack.push_async_callback(background.close)
        batches = BatchRunner(storage.engine, storage.vaults, gateway, batch_settings(config))
        batches.start()
        stack.push_async_callback(batches.close)
        yield stored_router(storage.engine, storage.vaults, store_bounds(config), batches.wake)


def batch_settings(config: GatewayConfig) -> BatchSettings:
    return BatchSettings(
        concurrency=config.stored.batch_concurrency,
        lease_s=config.stored.batch_lease_s,
        keep=config.stored.keep,
    )


def store_bounds(config: GatewayConfig) -> StoreBounds:
    return StoreBounds(
        max_file_bytes=config.stored.max_file_bytes,
        max_team_bytes=config.stored.max_team_file_bytes,
        keep=config.stored.keep,
    )
