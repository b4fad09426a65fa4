"""`descant gateway`: one process on uvicorn, or several on one port."""

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace

import click
import structlog
import uvicorn
import uvloop
from litestar import Litestar

from descant_gateway.app import open_app
from descant_gateway.catalogue.file import CatalogueFileError
from descant_gateway.check_command import check
from descant_gateway.config import ConfigError, GatewayConfig, ProcessConfig
from descant_gateway.feed.catalogue_feed import FAILURES
from descant_gateway.process import logs
from descant_gateway.process.client_protocol import ClientProtocol
from descant_gateway.process.drain import Drain
from descant_gateway.process.heap import settle_heap
from descant_gateway.process.workers import CANNOT_START, SOLE, WorkerPlace, Workers, WorkersFailed
from descant_gateway.store.errors import InUse
from descant_gateway.store.migrate import SchemaMismatch
from descant_wire.tracing import TracingUnavailable

_log = structlog.get_logger("descant_gateway.main")


class StartFailed(Exception):
    """The gateway could not start; the message says why."""


def serve(config: GatewayConfig) -> None:
    """Runs until SIGTERM or SIGINT: stops accepting, lets streams end within `shutdown_grace_s`, flushes the ledger.

    Raises StartFailed if it can't listen or has no catalogue to serve from.
    """
    logs.configure(config.process.log_level)
    if config.process.workers == 1:
        with _listen(config.process) as listener:
            _run(config, listener, SOLE)
        return
    with _reserve(config.process) as reserved:
        try:
            Workers(config, reserved, _run_worker).run()
        except WorkersFailed as error:
            raise StartFailed(str(error)) from error


def _run(config: GatewayConfig, listener: socket.socket, place: WorkerPlace, parent: int | None = None) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, listener, place, parent))


def _run_worker(config: GatewayConfig, reserved: socket.socket, place: WorkerPlace, parent: int) -> None:
    """`reserved` holds the port while workers come and go; it never listens."""
    host, port = reserved.getsockname()[:2]
    try:
        with _listen(replace(config.process, host=host, port=port)) as listener:
            _run(config, listener, place, parent)
    except StartFailed as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        sys.exit(CANNOT_START)


async def _serve(config: GatewayConfig, listener: socket.socket, place: WorkerPlace, parent: int | None) -> None:
    drain = Drain(config.process.drain_delay_s)
    async with AsyncExitStack() as stack:
        try:
            app = await stack.enter_async_context(open_app(config, place, drain))
        except SchemaMismatch as error:
            raise StartFailed(str(error)) from error
        except (CatalogueFileError, UnicodeDecodeError, InUse) as error:
            raise StartFailed(f"the catalogue file {config.catalogue.file} cannot be served from: {error}") from error
        except TracingUnavailable as error:
            raise StartFailed(str(error)) from error
        except FAILURES as error:
            raise StartFailed(f"the database cannot be read: {type(error).__name__}: {error}") from error
        server = _Server(_uvicorn_config(config.process, app), drain)
        if parent is not None:  # which ends this pipe by its own end, however it comes
            asyncio.get_running_loop().add_reader(parent, server.parent_is_gone, parent)
        _log.info("gateway is listening", host=config.process.host, port=listener.getsockname()[1])
        settle_heap()
        await server.serve(sockets=[listener])
        await _settle_cancelled(server)


def _listen(process: ProcessConfig) -> socket.socket:
    """Bound before anything is opened: a taken port is the commonest mistake and should be told first."""
    try:
        return socket.create_server(
            (process.host, process.port), family=_family(process), backlog=2048, reuse_port=process.workers > 1
        )
    except OSError as error:
        raise _cannot_listen(process, error) from error


def _reserve(process: ProcessConfig) -> socket.socket:
    """Bound for workers to share, and not listening."""
    reserved = socket.socket(_family(process), socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((process.host, process.port))
    except OSError as error:
        reserved.close()
        raise _cannot_listen(process, error) from error
    return reserved


def _family(process: ProcessConfig) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in process.host else socket.AF_INET


def _cannot_listen(process: ProcessConfig, error: OSError) -> StartFailed:
    reason = "the port is taken." if error.errno == errno.EADDRINUSE else str(error)
    return StartFailed(f"cannot listen on {process.host}:{process.port}: {reason}")


def _uvicorn_config(process: ProcessConfig, app: Litestar) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=ClientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # The client's address decides about keys with IP ranges, so no header may set it.
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(process.shutdown_grace_s)),
    )


async def _settle_cancelled(server: uvicorn.Server) -> None:
    """Requests that outlived the grace were cancelled; each still has to be settled before the ledger closes."""
    tasks = list(server.server_state.tasks)
    if tasks:
        await asyncio.wait(tasks, timeout=5.0)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain

    def parent_is_gone(self, pipe: int) -> None:
        asyncio.get_running_loop().remove_reader(pipe)
        self._drain.begin(self)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would let a SIGTERM kill the process once it has drained, before the ledger is flushed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._drain.begin, self)
        yield


@click.group(invoke_without_command=True, context_settings={"show_default": True})
@click.option("--host", help="Address to listen on.  [env: DESCANT_GATEWAY_HOST]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one.  [env: DESCANT_GATEWAY_PORT]")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes.  [env: DESCANT_GATEWAY_WORKERS]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[env: DESCANT_LOG_LEVEL]")
@click.pass_context
def gateway(
    context: click.Context, host: str | None, port: int | None, workers: int | None, log_level: str | None
) -> None:
    """Run the gateway in front of engines.

    Everything else is read from DESCANT_* variables; DESCANT_DATABASE_URL, DESCANT_VALKEY_URL, DESCANT_KEY_PEPPER and
    DESCANT_ADMIN_KEY have to be there.
    """
    if context.invoked_subcommand is not None:
        return
    try:
        config = GatewayConfig.from_environment(os.environ)
        process = replace(
            config.process,
            host=config.process.host if host is None else host,
            port=config.process.port if port is None else port,
            workers=config.process.workers if workers is None else workers,
            log_level=config.process.log_level if log_level is None else log_level,
        )
        serve(replace(config, process=process))
    except (ConfigError, StartFailed) as error:
        raise click.ClickException(str(error)) from error


gateway.add_command(check)
