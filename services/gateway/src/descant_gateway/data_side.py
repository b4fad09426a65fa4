"""Opens what requests of the data side need: Valkey's limits, the backends, the queue before them, traces, caches."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import Final

from descant_gateway.config import GatewayConfig
from descant_gateway.dialects import Dialect
from descant_gateway.dialects.messages import CountTokensDialect, MessagesDialect
from descant_gateway.egress.connections import for_webhooks
from descant_gateway.endpoints import COUNT_TOKENS, MESSAGES
from descant_gateway.identity.internal_channel import InternalChannel
from descant_gateway.ledger.settle import UsageSink
from descant_gateway.limits.admit import Admission
from descant_gateway.limits.limiter import Limiter, limits_script
from descant_gateway.limits.local_shares import LocalShares, OutagePolicy
from descant_gateway.limits.output_estimate import OutputEstimates
from descant_gateway.limits.paths import LimitPaths
from descant_gateway.limits.script_queue import ScriptQueue, connect
from descant_gateway.limits.warnings import LimitWarnings
from descant_gateway.pipeline import CatalogueSource, Gateway, PromptSink
from descant_gateway.process.metrics import Metrics
from descant_gateway.prompt_log import NO_PROMPT_LOG
from descant_gateway.relay.deadlines import Timeouts
from descant_gateway.relay.relay import Upstreams
from descant_gateway.relay.shadow import Shadows
from descant_gateway.response_cache import ResponseCache
from descant_gateway.routing.backends import Backends
from descant_gateway.waiting.fair_share import FairShare, QueueBounds
from descant_wire.tracing import Tracer, open_tracer

STATELESS_DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {MESSAGES: MessagesDialect(), COUNT_TOKENS: CountTokensDialect()}
)
"""Those that need no database."""


@asynccontextmanager
async def open_data_side(
    config: GatewayConfig,
    feed: CatalogueSource,
    ledger: UsageSink,
    dialects: Mapping[str, Dialect] = STATELESS_DIALECTS,
    prompt_log: PromptSink = NO_PROMPT_LOG,
) -> AsyncIterator[Gateway]:
    """Around a catalogue and a ledger that are open already."""
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        admission = await stack.enter_async_context(open_admission(config, feed, metrics))
        backends = await stack.enter_async_context(open_backends(config, feed))
        fair_share = FairShare(queue_bounds(config), lambda: feed.current, lambda: backends.states, metrics)
        backends.on_probed(fair_share.give_turns)
        tracer = await stack.enter_async_context(tracing(config))
        cache = ResponseCache(config.valkey.url, config.identity.key_pepper, config.valkey.timeout_s)
        stack.push_async_callback(cache.close)
        shadows = Shadows(backends, metrics)
        stack.push_async_callback(shadows.close)
        yield Gateway(
            feed=feed,
            fair_share=fair_share,
            admission=admission,
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


@asynccontextmanager
async def open_admission(config: GatewayConfig, feed: CatalogueSource, metrics: Metrics) -> AsyncIterator[Admission]:
    """Limits in Valkey, and who is warned of them. Settlements on their way are waited for at the end."""
    async with AsyncExitStack() as stack:
        queue = ScriptQueue(connect(config.valkey.url.reveal()), limits_script(), config.valkey.timeout_s)
        queue.start()
        stack.push_async_callback(queue.close)
        refusal = for_webhooks(config.limits.webhook_networks)
        warnings = LimitWarnings(lambda: feed.current.webhooks, connect(config.valkey.url.reveal()), metrics, refusal)
        warnings.start()
        stack.push_async_callback(warnings.close)
        limiter = Limiter(queue, lease_s=config.limits.lease_s)
        limiter.start()
        stack.push_async_callback(limiter.close)
        yield Admission(
            limiter=limiter,
            local_shares=LocalShares(outage_policy(config)),
            paths=LimitPaths(),
            outputs=OutputEstimates(),
            watcher=warnings,
        )


@asynccontextmanager
async def open_backends(config: GatewayConfig, feed: CatalogueSource) -> AsyncIterator[Backends]:
    backends = Backends(
        lambda: feed.current,
        connect_timeout_s=config.upstreams.connect_timeout_s,
        health_interval_s=config.upstreams.health_interval_s,
    )
    try:
        await backends.start()
        yield backends
    finally:
        await backends.close()


@asynccontextmanager
async def tracing(config: GatewayConfig) -> AsyncIterator[Tracer | None]:
    """None where no traces are asked for. Raises TracingUnavailable."""
    if not config.process.otlp_endpoint:
        yield None
        return
    tracer = open_tracer(config.process.otlp_endpoint, "descant-gateway")
    try:
        yield tracer
    finally:
        await asyncio.to_thread(tracer.close)


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
