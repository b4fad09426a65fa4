"""The front's end of the engine process: starts it, passes messages both ways, and knows when it dies."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import cast

from descant_engine.config import EngineConfig
from descant_engine.cpu_threads import openmp_environment
from descant_engine.serving.messages import Configure, Fatal, Ready, Shutdown, ToEngine, ToFront, frame, front_reader

EXIT_SECONDS = 5.0
STDERR = 2


class EngineDead(RuntimeError):
    """The engine process has ended; the message says why, as far as is known."""


class EngineClosed(EngineDead):
    """It was ended on purpose."""


class EngineStartError(RuntimeError):
    """The engine could not start; the message is the engine's own reason."""


class EngineClient(asyncio.Protocol):
    """One engine process. Made by `start`; everything runs on the event loop that started it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reader = front_reader()
        self._transport: asyncio.WriteTransport | None = None
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._on_message: Callable[[ToFront], None] = _ignore
        self._on_death: Callable[[EngineDead], None] = _ignore
        self._death: EngineDead | None = None
        self._last_words: EngineDead | None = None
        self._obituary: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: EngineConfig) -> tuple["EngineClient", Ready]:
        """Starts the process and waits until the model is loaded.

        Raises:
            EngineStartError: with the engine's reason. Nothing is left running then.
        """
        front_end, engine_end = socket.socketpair()
        try:
            with engine_end:
                client = cls(await _spawn(engine_end))
        except BaseException:
            front_end.close()
            raise
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: client, sock=front_end)
            client.send(Configure(config))
            return client, await client._ready
        except EngineDead as error:
            raise EngineStartError(str(error)) from None
        except BaseException:
            client.kill()
            await client._process.wait()
            raise

    def listen(self, on_message: Callable[[ToFront], None], on_death: Callable[[EngineDead], None]) -> None:
        """`on_message` gets what the engine sends from now on, `on_death` once the reason why it is gone."""
        self._on_message, self._on_death = on_message, on_death
        if self._death is not None:
            on_death(self._death)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def death(self) -> EngineDead | None:
        """None while the engine lives."""
        return self._death

    def check_alive(self) -> None:
        """Raises EngineDead, with the reason, once it is gone."""
        if self._death is not None:
            raise EngineDead(str(self._death))

    def send(self, message: ToEngine) -> None:
        """Never waits. What is sent to a dead engine is lost; its death has been or will be reported."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    async def close(self) -> None:
        """Ends the process, by force if it does not end by itself within seconds."""
        self._last_words = self._last_words or EngineClosed("the engine was closed")
        self.send(Shutdown())
        await self._wait_for_exit()
        if self._transport is not None:
            self._transport.close()
        if self._obituary is not None:
            await self._obituary

    async def _wait_for_exit(self) -> int:
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            self.kill()
            return await self._process.wait()

    def kill(self) -> None:
        """Ends the process by force. Its death is reported as any other."""
        if self._process.returncode is None:
            self._process.kill()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            match message:
                case Ready():
                    self._ready.set_result(message)
                case Fatal(text):
                    self._last_words = EngineDead(text)
                case _:
                    self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._obituary = asyncio.get_running_loop().create_task(self._report_death())

    async def _report_death(self) -> None:
        # Without its socket it is of no use, even if it lives on.
        returncode = await self._wait_for_exit()
        self._death = self._last_words or EngineDead(_cause_of_death(returncode))
        if not self._ready.done():
            self._ready.set_exception(self._death)
        else:
            self._on_death(self._death)


async def _spawn(engine_end: socket.socket) -> asyncio.subprocess.Process:
    descriptor = engine_end.fileno()
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "descant_engine.serving.engine_process",
        str(descriptor),
        pass_fds=(descriptor,),
        env={**os.environ, **openmp_environment(os.environ)},
        stdin=subprocess.DEVNULL,
        # Standard output belongs to the front's own program.
        stdout=STDERR,
        # Signals from the terminal are for the front.
        start_new_session=True,
    )


def _cause_of_death(returncode: int) -> str:
    if returncode == -9:
        return "the engine process was killed (SIGKILL); if nobody did it on purpose, the machine ran out of memory"
    if returncode < 0:
        return f"the engine process was ended by signal {-returncode}"
    return f"the engine process ended with status {returncode}; its log says why"


def _ignore(_: object) -> None:
    """Until somebody listens."""
