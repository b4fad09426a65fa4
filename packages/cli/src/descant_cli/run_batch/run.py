"""Answers the lines by the engine server's application, called in this process: a body means what it means online."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx

from descant_cli.run_batch.lines import BadLine, BatchRequest, answer_line, error_line, read_lines
from descant_cli.run_batch.output import OutputFile
from descant_engine.serving.engine_client import EngineStartError
from descant_server.app import build_app
from descant_server.config import ServerConfig
from descant_server.service import Service

MAX_IN_FLIGHT = 1024
"""Requests that the engine knows of at once: enough to choose from, and few enough to hold in memory."""


class BatchStopped(Exception):
    """The engine cannot go on; what has been answered is in the output."""


@dataclass(slots=True)
class Tally:
    total: int
    skipped: int = 0
    answered: int = 0
    failed: int = 0

    @property
    def finished(self) -> int:
        return self.skipped + self.answered + self.failed


async def run_batch(config: ServerConfig, source: Path, output: OutputFile, tell: Callable[[Tally], None]) -> Tally:
    """Answers every line of `source` that `output` has no answer to. `tell` is called when the tally has changed.

    Raises:
        BatchStopped: the model cannot be loaded, or the engine died.
        OSError: the files.
    """
    lines = list_open_lines(source, output.finished)
    tally = Tally(total=sum(1 for _ in read_lines(source)))
    tally.skipped = tally.total - sum(1 for _ in lines())
    tell(tally)
    if tally.finished < tally.total:
        async with _application(config) as client:
            await _answer_all(client, lines(), output, tally, tell)
    return tally


def list_open_lines(source: Path, finished: set[str]) -> Callable[[], Iterator[BatchRequest | BadLine]]:
    """The lines that are still to be answered, read anew at each call: a file may be larger than memory."""

    def open_lines() -> Iterator[BatchRequest | BadLine]:
        return (line for line in read_lines(source) if line.key not in finished)

    return open_lines


@asynccontextmanager
async def _application(config: ServerConfig) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server's application, without a socket between."""
    service = Service(config)
    try:
        await service.load()
    except (EngineStartError, ValueError, OSError) as error:
        raise BatchStopped(f"cannot serve {config.engine.model}: {error}") from error
    try:
        transport = httpx.ASGITransport(cast(Any, build_app(service)), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=None) as client:
            yield client
    finally:
        await service.close()


async def _answer_all(
    client: httpx.AsyncClient,
    lines: Iterator[BatchRequest | BadLine],
    output: OutputFile,
    tally: Tally,
    tell: Callable[[Tally], None],
) -> None:
    """Raises what the first line raised that could not be answered at all."""

    async def work() -> None:
        for line in lines:  # one iterator for all workers
            written, is_ok = await _answer(client, line)
            output.write(written)
            tally.answered += is_ok
            tally.failed += not is_ok
            tell(tally)

    workers = [asyncio.create_task(work()) for _ in range(min(MAX_IN_FLIGHT, tally.total - tally.finished))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _answer(client: httpx.AsyncClient, line: BatchRequest | BadLine) -> tuple[bytes, bool]:
    """The output's line, and whether it is an answer."""
    if isinstance(line, BadLine):
        return error_line(line), False
    reply = await client.post(line.url, json=line.body)
    if reply.status_code == 503:
        raise BatchStopped(_message(reply))
    try:
        answer = reply.json()
    except ValueError:
        answer = {"error": {"message": reply.text, "type": "server_error", "param": None, "code": None}}
    return answer_line(line, reply.status_code, answer), reply.status_code == 200


def _message(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return reply.text
