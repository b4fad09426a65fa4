"""The server's process, from bind to exit: listen at once, load the model, serve, drain on SIGTERM."""

import asyncio
import signal
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from descant_engine.serving.engine_client import EngineStartError
from descant_server.app import build_app
from descant_server.config import ServerConfig
from descant_server.service import Service

FLUSH_TIMEOUT_S = 5
"""How long clients may take to read the end of their answers once nothing runs any more."""
BACKLOG = 2048


class StartFailed(Exception):
    """The server can't serve what it was asked to; the message is one line for a person."""


class StopSignals:
    """SIGTERM or SIGINT asks to stop; a second one, to stop without waiting for anybody."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask)

    def ask(self) -> None:
        (self.insisted if self.asked.is_set() else self.asked).set()


async def serve_forever(config: ServerConfig, stop: StopSignals) -> None:
    """Returns once it was asked to stop and everything has ended.

    Raises:
        StartFailed: the port is taken, or the model or an adapter can't be loaded.
    """
    listener = _bind(config.host, config.port)
    service = Service(config)
    server = _server(service)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        _say(f"listening on {_url(listener)}, loading {config.engine.model}")
        if await _load(service, stop):
            _say(f"ready: serving {', '.join(config.base_names)} on {_url(listener)}")
            await stop.asked.wait()
            _say("stopping: running requests may finish, new ones are refused")
            await _first_of(service.drain(), stop.insisted.wait())
    finally:
        await service.close()
        server.should_exit = True
        await serving
        listener.close()


async def _load(service: Service, stop: StopSignals) -> bool:
    """False if it was asked to stop first."""
    try:
        await _first_of(service.load(), stop.asked.wait())
    except (EngineStartError, ValueError, OSError) as error:
        raise StartFailed(f"cannot serve {service.config.engine.model}: {error}") from error
    return not stop.asked.is_set()


async def _first_of(*work: Coroutine[Any, Any, object]) -> None:
    """Waits until one of them ends, and cancels the others. Raises what it raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise StartFailed(f"cannot listen on {host} port {port}: {error}. Choose another with --port.") from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: when to stop is decided above."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(service: Service) -> _Server:
    return _Server(
        uvicorn.Config(
            build_app(service),
            http="httptools",
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=FLUSH_TIMEOUT_S,
        )
    )


def _say(line: str) -> None:
    print(f"descant: {line}", flush=True)
