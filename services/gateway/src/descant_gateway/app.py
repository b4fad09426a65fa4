"""Builds the Litestar application: opens all that the gateway is made of, mounts the routes, shapes every error."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import ControllerRouterHandler

from descant_gateway.config import GatewayConfig
from descant_gateway.data_side import STATELESS_DIALECTS, open_data_side
from descant_gateway.endpoints import RESPONSES
from descant_gateway.errors import from_framework
from descant_gateway.feed.catalogue_feed import CatalogueFeed
from descant_gateway.feed.catalogue_watch import CatalogueWatch
from descant_gateway.feed.change_signals import ChangeSignal, PostgresSignal, ValkeySignal
from descant_gateway.identity.proxies import TrustedProxies
from descant_gateway.ledger.books import open_books, show_books
from descant_gateway.limits.script_queue import connect
from descant_gateway.limits.throttle import Throttle
from descant_gateway.pipeline import Gateway
from descant_gateway.process.drain import Drain
from descant_gateway.process.worker_metrics import MetricsPage
from descant_gateway.process.workers import SOLE, WorkerPlace
from descant_gateway.prompt_log import PromptLog
from descant_gateway.routes import health, inference, limits, models
from descant_gateway.routes.access import deny_by_default, require_declarations
from descant_gateway.routes.admin import admin_router
from descant_gateway.routes.admin.description import admin_description
from descant_gateway.sealing import Sealer
from descant_gateway.store.migrate import check_schema
from descant_gateway.store.session import create_engine
from descant_gateway.store.team_keys import TeamKeys
from descant_gateway.stored_side import open_storage, open_stored_work
from descant_wire.errors import ApiError, server_error

_log = structlog.get_logger("descant_gateway.app")

NO_PROXIES: Final = TrustedProxies()
DATA_ROUTES: Sequence[ControllerRouterHandler] = (
    inference.inference,
    models.list_models,
    models.show_model,
    limits.show_limits,
    health.health,
    health.ready,
    health.show_metrics,
)


def build_app(
    gateway: Gateway,
    routes: Sequence[ControllerRouterHandler] = DATA_ROUTES,
    *,
    proxies: TrustedProxies = NO_PROXIES,
    drain: Drain | None = None,
    metrics_page: MetricsPage | None = None,
) -> Litestar:
    """The application around a gateway that is open; whoever opened it closes it after the server has drained.

    Raises access.Undeclared for a route that does not say who may call it and how often.
    """
    app = Litestar(
        route_handlers=list(routes),
        guards=[deny_by_default],
        state=State(
            {
                "gateway": gateway,
                "proxies": proxies,
                "throttle": Throttle(),
                "drain": drain or Drain(),
                "metrics_page": metrics_page or MetricsPage(lambda: gateway.metrics, SOLE),
            }
        ),
        exception_handlers={ApiError: _refuse, HTTPException: _refuse_by_framework, Exception: _fail},
        openapi_config=admin_description(),
        logging_config=None,
    )
    require_declarations(app)
    return app


@asynccontextmanager
async def open_app(
    config: GatewayConfig, place: WorkerPlace = SOLE, drain: Drain | None = None
) -> AsyncIterator[Litestar]:
    """The whole gateway. Opened in the order of need and closed in the reverse one: the ledger is flushed near the end.

    Raises what the database raises, or SchemaMismatch, if there is no first catalogue to serve from; and what
    CatalogueWatch.start raises of a catalogue file that can't be served from.
    """
    engine = create_engine(config.database.url, pool_size=config.database.pool_size)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        await check_schema(engine)
        sealer = Sealer(config.identity.key_pepper)
        messages = ValkeySignal(connect(config.valkey.url.reveal()))
        stack.push_async_callback(messages.close)
        if config.catalogue.file is not None and place.is_first:
            watch = CatalogueWatch(engine, config.catalogue.file)
            await watch.start()
            stack.push_async_callback(watch.close)
        feed = await stack.enter_async_context(open_feed(config, sealer, messages))
        books = await stack.enter_async_context(open_books(config, engine, lambda: feed.current))
        prompt_log = PromptLog(engine, TeamKeys(engine, sealer))
        prompt_log.start()
        stack.push_async_callback(prompt_log.close)
        storage = await stack.enter_async_context(open_storage(config, sealer))
        dialects = {**STATELESS_DIALECTS, RESPONSES: storage.responses}
        data_side = open_data_side(config, feed, books.ledger, dialects, prompt_log=prompt_log)
        gateway = await stack.enter_async_context(data_side)
        stored = await stack.enter_async_context(open_stored_work(config, storage, gateway))
        show_books(books, gateway.metrics.registry)
        admin = admin_router(config, engine, on_change=messages.publish)
        page = MetricsPage(lambda: gateway.metrics, place)
        await page.start()
        stack.push_async_callback(page.close)
        proxies = TrustedProxies(config.identity.trusted_proxies)
        yield build_app(gateway, (*DATA_ROUTES, stored, admin), proxies=proxies, drain=drain, metrics_page=page)


@asynccontextmanager
async def open_feed(config: GatewayConfig, sealer: Sealer, messages: ValkeySignal) -> AsyncIterator[CatalogueFeed]:
    """With connections of its own: reports that keep the others busy must not hold up a revocation."""
    engine = create_engine(config.database.url, pool_size=2)
    signals: list[ChangeSignal] = [messages, *([PostgresSignal(engine)] if config.database.listen else [])]
    feed = CatalogueFeed(engine, sealer, signals=signals, poll_s=config.catalogue.poll_s)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        await feed.start()
        stack.push_async_callback(feed.close)
        yield feed


def _refuse(_: Request[object, object, State], error: ApiError) -> Response[bytes]:
    return Response(error.body, status_code=error.status, headers=error.headers, media_type="application/json")


def _refuse_by_framework(request: Request[object, object, State], error: HTTPException) -> Response[bytes]:
    return _refuse(request, from_framework(error, request.method, request.scope["path"]))


def _fail(request: Request[object, object, State], error: Exception) -> Response[bytes]:
    _log.error("request failed", path=request.scope["path"], exc_info=error)
    return _refuse(request, server_error())
