"""The requests that the front has under way, each from its submission to its last output."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from descant_engine.outputs import OutputReader
from descant_engine.request import TokenDelta
from descant_engine.serving.request_stream import OutputBuffer, RequestFailed, RequestStream

_log = logging.getLogger(__name__)


class _Active(NamedTuple):
    text: OutputReader
    buffer: OutputBuffer


class ActiveRequests:
    """Turns the engine's deltas into outputs, and puts each into its reader's buffer.

    A request is here as long as the engine may have work with it. Made and used on one event loop; only `abandon` may
    be called from any thread.
    """

    def __init__(self, abort: Callable[[str], None]) -> None:
        """`abort(engine_id)` ends a request in the engine, because its reader has left or a stop string was found."""
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._active: dict[str, _Active] = {}
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        return len(self._active)

    def add(self, engine_id: str, text: OutputReader) -> RequestStream:
        """`engine_id` is the request's id in the engine, never used before."""
        buffer = OutputBuffer(text.num_prompt_tokens)
        self._active[engine_id] = _Active(text, buffer)
        self._none.clear()
        return RequestStream(text.request_id, buffer, partial(self.abandon, engine_id))

    def deliver(self, deltas: Sequence[TokenDelta]) -> None:
        """One step's outcome. What is no longer here was aborted while this was on its way."""
        for delta in deltas:
            if (active := self._active.get(delta.request_id)) is None:
                continue
            try:
                self._deliver(delta, active)
            except Exception as error:  # a fault in one output is no reason to end the others
                _log.exception("request %s: its output could not be read; it is ended", delta.request_id)
                self.fail(delta.request_id, RequestFailed(f"the output could not be read ({type(error).__name__})"))
                self._abort(delta.request_id)

    def _deliver(self, delta: TokenDelta, active: _Active) -> None:
        if (output := active.text.apply(delta)) is None:
            return
        active.buffer.put(output)
        if output.finish_reason is not None:
            self._forget(delta.request_id)
            if delta.finish_reason is None:
                self._abort(delta.request_id)

    def fail(self, engine_id: str, error: Exception) -> None:
        """The engine has no more work with it."""
        if (active := self._forget(engine_id)) is not None:
            active.buffer.fail(error)

    def fail_all(self, error: Exception) -> None:
        for engine_id in list(self._active):
            self.fail(engine_id, error)

    def abandon(self, engine_id: str) -> None:
        """Its reader has left: a stream may be collected as garbage in any thread, even when the loop is closed."""
        if threading.get_ident() == self._thread:
            self._end(engine_id)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end, engine_id)

    async def wait_until_none(self) -> None:
        await self._none.wait()

    def _end(self, engine_id: str) -> None:
        if self._forget(engine_id) is not None:
            self._abort(engine_id)

    def _forget(self, engine_id: str) -> _Active | None:
        active = self._active.pop(engine_id, None)
        if not self._active:
            self._none.set()
        return active
