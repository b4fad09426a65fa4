"""What API calls came to, for a gateway whose client left before it could read so: by the gateway's own name for each.

The engine counts what it generated until it heard that nobody reads; only it can know.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from descant_engine.serving.request_stream import RequestStream
from descant_wire.load import EndedUsage

MAX_ENDED: Final = 20_000
"""Calls are asked for within seconds of their end; the oldest are forgotten."""


class UsageBook:
    """Calls under way and the last ones that ended. A call without a name is not kept."""

    def __init__(self, max_ended: int = MAX_ENDED) -> None:
        self._max_ended = max_ended
        self._open: dict[str, asyncio.Event] = {}
        self._ended: OrderedDict[str, EndedUsage] = OrderedDict()

    @contextmanager
    def entry(self, charge: str, streams: Sequence[RequestStream]) -> Iterator[None]:
        """`with` it around a call; `streams` are all that it has submitted by the end.

        A gateway that tries again under the same name asks for its last try: an earlier one that still ends is no
        longer its answer.
        """
        if not charge:
            yield
            return
        has_ended = self._open[charge] = asyncio.Event()
        try:
            yield
        finally:
            if self._open.get(charge) is has_ended:
                self._close(charge, total_of(streams))
            has_ended.set()

    async def ended(self, charge: str, *, within_s: float) -> EndedUsage | None:
        """The usage of a call as soon as it has ended; None for one never seen, or forgotten.

        Raises:
            TimeoutError: it still runs.
        """
        async with asyncio.timeout(within_s):
            while (under_way := self._open.get(charge)) is not None:
                await under_way.wait()
        return self._ended.get(charge)

    def _close(self, charge: str, usage: EndedUsage) -> None:
        del self._open[charge]
        self._ended[charge] = usage
        while len(self._ended) > self._max_ended:
            self._ended.popitem(last=False)


def total_of(streams: Sequence[RequestStream]) -> EndedUsage:
    usages = [stream.usage for stream in streams]
    return EndedUsage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )
