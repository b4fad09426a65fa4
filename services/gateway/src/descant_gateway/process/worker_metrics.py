"""The metrics of all workers on one page, whichever of them is asked.

Each series has a `worker` label where there are several: summed here, the sums would fall when a worker is replaced,
and Prometheus would take what is left for an increase. Nothing is written for it on the path of a request.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from descant_gateway.process.metrics import Metrics
from descant_gateway.process.workers import WorkerPlace

ANSWER_TIMEOUT_S: Final = 1.0
_FAILURES: Final = (OSError, TimeoutError, asyncio.IncompleteReadError)


class MetricsPage:
    """Owns this worker's socket, where the others ask for its metrics."""

    def __init__(self, metrics: Callable[[], Metrics], place: WorkerPlace) -> None:
        self._metrics = metrics
        self._place = place
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        if self._place.folder is not None:
            path = self._place.folder / str(self._place.index)
            path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._tell, path)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def render(self) -> bytes:
        """Prometheus' text format. A worker that does not answer in time is missing."""
        if self._place.folder is None:
            return self._metrics().render()
        pages = await asyncio.gather(*(self._page_of(index) for index in range(self._place.count)))
        return merge({str(index): page.decode() for index, page in enumerate(pages) if page}).encode()

    async def _page_of(self, index: int) -> bytes:
        if index == self._place.index or self._place.folder is None:
            return self._metrics().render()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._place.folder / str(index))
                page = await reader.read()
                writer.close()
                return page
        except _FAILURES:
            return b""

    async def _tell(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._metrics().render())
        writer.close()


def merge(pages: dict[str, str]) -> str:
    """One page of several, by worker: every family once, with a `worker` label on each of its series."""
    headers: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, page in pages.items():
        family = ""
        for line in page.splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                headers.setdefault(family, [line])
                samples.setdefault(family, [])
            elif line.startswith("#"):
                if line not in headers[family]:
                    headers[family].append(line)
            elif line:
                samples[family].append(_labelled(line, worker))
    return "\n".join(line for family in headers for line in (*headers[family], *samples[family])) + "\n"


def _labelled(sample: str, worker: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{worker="{worker}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{worker="{worker}"}} {value}'
