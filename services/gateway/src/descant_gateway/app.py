"""Builds the Litestar application: opens what the pipeline needs, mounts the routes, shapes every error."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import ControllerRouterHandler

from descant_gateway.background import BackgroundResponses
from descant_gateway.batches.runner import BatchRunner, BatchSettings
from descant_gateway.config import GatewayConfig
from descant_gateway.dialects import Dialect
from descant_gateway.dialects.messages import CountTokensDialect, MessagesDialect
from descant_gateway.dialects.responses import ResponsesDialect
from descant_gateway.egress.connections import for_webhooks
from descant_gateway.endpoints import COUNT_TOKENS, MESSAGES, RESPONSES
from descant_gateway.errors import from_framework
from descant_gateway.feed.catalogue_feed import CatalogueFeed
from descant_gateway.feed.catalogue_watch import CatalogueWatch
from descant_gateway.feed.change_signals import ChangeSignal, PostgresSignal, ValkeySignal
from descant_gateway.identity.internal_channel import InternalChannel
from descant_gateway.identity.proxies import TrustedProxies
from descant_gateway.ledger.books import open_books, show_books
from descant_gateway.ledger.settle import UsageSink
from descant_gateway.limits.admit import Admission
from descant_gateway.limits.limiter import Limiter, limits_script
from descant_gateway.limits.local_shares import LocalShares, OutagePolicy
from descant_gateway.limits.output_estimate import OutputEstimates
from descant_gateway.limits.paths import LimitPaths
from descant_gateway.limits.script_queue import ScriptQueue, connect
from descant_gateway.limits.throttle import Throttle
from descant_gateway.limits.warnings import LimitWarnings
from descant_gateway.pipeline import CatalogueSource, Gateway, PromptSink
from descant_gateway.process.drain import Drain
from descant_gateway.process.metrics import Metrics
from descant_gateway.process.worker_metrics import MetricsPage
from descant_gateway.process.workers import SOLE, WorkerPlace
from descant_gateway.prompt_log import NO_PROMPT_LOG, PromptLog
from descant_gateway.relay.deadlines import Timeouts
from descant_gateway.relay.relay import Upstreams
from descant_gateway.relay.shadow import Shadows
from descant_gateway.response_cache import ResponseCache
from descant_gateway.routes import health, inference, limits, models
from descant_gateway.routes.access import deny_by_default, require_declarations
from descant_gateway.routes.admin import admin_router
from descant_gateway.routes.admin.description import admin_description
from descant_gateway.routes.stored import stored_router
from descant_gateway.routes.stored.bounds import StoreBounds
from descant_gateway.routing.backends import Backends
from descant_gateway.sealing import Sealer
from descant_gateway.store.migrate import check_schema
from descant_gateway.store.session import create_engine
from descant_gateway.store.team_keys import TeamKeys
from descant_gateway.store.vault import Vaults
from descant_gateway.waiting.fair_share import FairShare, QueueBounds
from descant_wire.errors import ApiError, server_error
from descant_wire.tracing import open_tracer

_log = structlog.get_logger("descant_gateway.app")

NO_PROXIES: Final = TrustedProxies()
STATELESS_DIALECTS: Final[Mapping[str, Dialect]] = {
    MESSAGES: MessagesDialect(),
    COUNT_TOKENS: CountTokensDialect(),
}
"""Those that need no database."""
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
        # Of its own: reports that keep the other connections busy must not hold up a revocation.
        feed_engine = create_engine(config.database.url, pool_size=2)
        stack.push_async_callback(feed_engine.dispose)
        messages = ValkeySignal(connect(config.valkey.url.reveal()))
        stack.push_async_callback(messages.close)
        signals: list[ChangeSignal] = [messages, *([PostgresSignal(feed_engine)] if config.database.listen else [])]
        sealer = Sealer(config.identity.key_pepper)
        if config.catalogue.file is not None and place.is_first:
            watch = CatalogueWatch(engine, config.catalogue.file)
            await watch.start()
            stack.push_async_callback(watch.close)
        feed = CatalogueFeed(feed_engine, sealer, signals=signals, poll_s=config.catalogue.poll_s)
        await feed.start()
        stack.push_async_callback(feed.close)
        books = await stack.enter_async_context(open_books(config, engine, lambda: feed.current))
        prompt_log = PromptLog(engine, TeamKeys(engine, sealer))
        prompt_log.start()
        stack.push_async_callback(prompt_log.close)
        # Of their own: large files and many lines keep the other connections free.
        stored_engine = create_engine(config.database.url, pool_size=config.database.pool_size)
        stack.push_async_callback(stored_engine.dispose)
        vaults = Vaults(TeamKeys(stored_engine, sealer), seals=config.stored.sealed)
        responses = ResponsesDialect(stored_engine, vaults, config.stored.keep)
        dialects = {**STATELESS_DIALECTS, RESPONSES: responses}
        data_side = open_data_side(config, feed, books.ledger, dialects, prompt_log=prompt_log)
        gateway = await stack.enter_async_context(data_side)
        background = BackgroundResponses(responses, stored_engine, vaults, gateway)
        responses.background = background
        stack.push_async_callback(background.close)
        batches = BatchRunner(stored_engine, vaults, gateway, batch_settings(config))
        batches.start()
        stack.push_async_callback(batches.close)
        stored = stored_router(stored_engine, vaults, store_bounds(config), batches.wake)
        show_books(books, gateway.metrics.registry)
        admin = admin_router(config, engine, on_change=messages.publish)
        page = MetricsPage(lambda: gateway.metrics, place)
        await page.start()
        stack.push_async_callback(page.close)
        proxies = TrustedProxies(config.identity.trusted_proxies)
        yield build_app(gateway, (*DATA_ROUTES, stored, admin), proxies=proxies, drain=drain, metrics_page=page)


@asynccontextmanager
async def open_data_side(
    config: GatewayConfig,
    feed: CatalogueSource,
    ledger: UsageSink,
    dialects: Mapping[str, Dialect] = STATELESS_DIALECTS,
    prompt_log: PromptSink = NO_PROMPT_LOG,
) -> AsyncIterator[Gateway]:
    """Valkey and the backends, around a catalogue and a ledger that are open already."""
    async with AsyncExitStack() as stack:
        queue = ScriptQueue(connect(config.valkey.url.reveal()), limits_script(), config.valkey.timeout_s)
        queue.start()
        stack.push_async_callback(queue.close)
        metrics = Metrics()
        refusal = for_webhooks(config.limits.webhook_networks)
        warnings = LimitWarnings(lambda: feed.current.webhooks, connect(config.valkey.url.reveal()), metrics, refusal)
        warnings.start()
        stack.push_async_callback(warnings.close)
        limiter = Limiter(queue, lease_s=config.limits.lease_s)
        limiter.start()
        stack.push_async_callback(limiter.close, config.process.shutdown_grace_s)
        backends = Backends(
            lambda: feed.current,
            connect_timeout_s=config.upstreams.connect_timeout_s,
            health_interval_s=config.upstreams.health_interval_s,
        )
        stack.push_async_callback(backends.close)
        await backends.start()
        fair_share = FairShare(queue_bounds(config), lambda: feed.current, lambda: backends.states, metrics)
        backends.on_probed(fair_share.give_turns)
        tracer = (
            None if not config.process.otlp_endpoint else open_tracer(config.process.otlp_endpoint, "descant-gateway")
        )
        if tracer is not None:
            stack.push_async_callback(asyncio.to_thread, tracer.close)
        cache = ResponseCache(config.valkey.url, config.identity.key_pepper, config.valkey.timeout_s)
        stack.push_async_callback(cache.close)
        shadows = Shadows(backends, metrics)
        stack.push_async_callback(shadows.close)
        yield Gateway(
            feed=feed,
            fair_share=fair_share,
            admission=Admission(
                limiter=limiter,
                local_shares=LocalShares(outage_policy(config)),
                paths=LimitPaths(),
                outputs=OutputEstimates(),
                watcher=warnings,
            ),
            upstreams=Upstreams(backends, shadows, timeouts_of(config)),
            ledger=ledger,
            metrics=metrics,
            tracer=tracer,
            prompt_log=prompt_log,
            response_cache=cache,
            channel=InternalChannel(config.identity.key_pepper, config.identity.internal_key),
            pepper=config.identity.key_pepper.reveal(),
            max_body_bytes=config.process.max_body_bytes,
            dialects=dialects,
        )


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


def queue_bounds(config: GatewayConfig) -> QueueBounds:
    return QueueBounds(
        max_length=config.queue.length, timeout_s=config.queue.timeout_s, num_processes=config.process.num_processes
    )


def outage_policy(config: GatewayConfig) -> OutagePolicy:
    return OutagePolicy(
        rates=config.limits.outage_rates,
        budgets=config.limits.outage_budgets,
        num_processes=config.process.num_processes,
    )


def timeouts_of(config: GatewayConfig) -> Timeouts:
    return Timeouts(
        first_byte_s=config.upstreams.first_byte_timeout_s,
        idle_s=config.upstreams.idle_timeout_s,
        total_s=config.upstreams.deadline_s,
    )


def _refuse(_: Request[object, object, State], error: ApiError) -> Response[bytes]:
    return Response(error.body, status_code=error.status, headers=error.headers, media_type="application/json")


def _refuse_by_framework(request: Request[object, object, State], error: HTTPException) -> Response[bytes]:
    return _refuse(request, from_framework(error, request.method, request.scope["path"]))


def _fail(request: Request[object, object, State], error: Exception) -> Response[bytes]:
    _log.error("request failed", path=request.scope["path"], exc_info=error)
    return _refuse(request, server_error())
