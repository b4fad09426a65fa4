"""All that keeps the books of one gateway: the ledger's writer, its upkeep, and the watch over budgets' counters."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.catalogue.snapshot import Catalogue
from descant_gateway.config import GatewayConfig
from descant_gateway.ledger.reconcile import Reconciler
from descant_gateway.ledger.upkeep import LedgerUpkeep
from descant_gateway.ledger.writer import LedgerWriter
from descant_gateway.limits.script_queue import connect
from descant_gateway.store.session import create_engine


@dataclass(frozen=True, slots=True)
class Books:
    ledger: LedgerWriter
    reconciler: Reconciler


@asynccontextmanager
async def open_books(
    config: GatewayConfig, engine: AsyncEngine, catalogue: Callable[[], Catalogue]
) -> AsyncIterator[Books]:
    """The ledger is flushed when it is left: whatever appends to it must have ended before."""
    async with AsyncExitStack() as stack:
        ledger = LedgerWriter(engine, config.ledger.spool_dir)
        await ledger.start()
        stack.push_async_callback(ledger.close)
        # Of its own: summing an hour must keep no connection from what writes.
        upkeep_engine = create_engine(config.database.url, pool_size=2)
        stack.push_async_callback(upkeep_engine.dispose)
        upkeep = LedgerUpkeep(upkeep_engine, keep_days=config.ledger.keep_days, recover=ledger.recover)
        upkeep.start()
        stack.push_async_callback(upkeep.close)
        reconciler = Reconciler(catalogue, upkeep_engine, connect(config.valkey.url.reveal()))
        reconciler.start()
        stack.push_async_callback(reconciler.close)
        yield Books(ledger, reconciler)


def show_books(books: Books, registry: CollectorRegistry) -> None:
    """Adds what tells whether usage is safe; read when somebody asks, so that it costs no request anything."""
    ledger = books.ledger
    for name, meaning, value in (
        ("pending", "Usage records that are in memory and journal only.", lambda: ledger.num_pending),
        ("spooling", "1 while usage records wait on disk for PostgreSQL.", lambda: ledger.is_spooling),
        ("journalling", "0 while the disk refuses the journal.", lambda: ledger.is_journalling),
        ("recovered", "Usage records found in the journals of gateways that died.", lambda: ledger.num_recovered),
        ("lost", "Usage records that nothing took; each is in the log.", lambda: ledger.num_lost),
    ):  # fmt: skip
        Gauge(f"descant_gateway_ledger_{name}", meaning, registry=registry).set_function(value)
    drift = Gauge(
        "descant_gateway_limit_drift",
        "By how much the counters of budgets differ from the ledger, as last seen by this gateway.",
        ("counted",),
        registry=registry,
    )
    for counted in books.reconciler.drift:
        drift.labels(counted.value).set_function(partial(books.reconciler.drift.__getitem__, counted))
