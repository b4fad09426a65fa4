"""Sends requests as they arrive, never more at once than allowed, and collects what came of them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from descant_bench.online.client import RequestRecord, Target, send
from descant_bench.online.prompts import SampleRequest

TIMEOUT_S = 6 * 60 * 60


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    """Seconds after the start."""
    request: SampleRequest
    model: str


@dataclass(frozen=True, slots=True)
class LoadResult:
    duration: float
    """Seconds from the first arrival to the last answer's end."""
    records: tuple[RequestRecord, ...]
    """In the order of arrivals."""


async def run_load(
    target: Target,
    arrivals: Sequence[Arrival],
    *,
    max_concurrency: int | None = None,
    count_finished: Callable[[], object] = lambda: None,
) -> LoadResult:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    places = asyncio.Semaphore(max_concurrency or len(arrivals) or 1)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        start = time.perf_counter()

        async def serve(arrival: Arrival) -> RequestRecord:
            async with places:
                record = await send(session, target, arrival.request, arrival.model)
            count_finished()
            return record

        tasks = []
        for arrival in arrivals:
            delay = start + arrival.at - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            tasks.append(asyncio.create_task(serve(arrival)))
        records = await asyncio.gather(*tasks)
        return LoadResult(time.perf_counter() - start, tuple(records))
