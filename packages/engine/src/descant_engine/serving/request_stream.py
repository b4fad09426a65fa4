"""The output of one request on its way to whoever reads it."""

import asyncio
import weakref
from collections.abc import Callable
from types import TracebackType

from descant_engine.outputs import RequestOutput, Usage
from descant_engine.request import FinishReason


class RequestFailed(RuntimeError):
    """The engine could not finish this request; others are not concerned."""


class GrammarUnmet(RequestFailed):
    """The output cannot keep to its grammar: it leads nowhere, takes too long, or other options contradict it."""


class OutputBuffer:
    """Between the engine's deltas and a reader of any speed: what the reader has not taken yet is merged into one."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self.usage = Usage(prompt_tokens=num_prompt_tokens, completion_tokens=0, cached_tokens=0)
        """Of everything that was put, taken or not."""
        self._output: RequestOutput | None = None
        self._error: Exception | None = None
        self._is_closed = False
        self._changed = asyncio.Event()

    def put(self, output: RequestOutput) -> None:
        self.usage = output.usage
        self._output = output if self._output is None else self._output.followed_by(output)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """The reader gets what is here, and then the error."""
        self._error = error
        self._changed.set()

    def close(self) -> None:
        """Nobody reads any more."""
        self._is_closed = True
        self._changed.set()

    async def take(self) -> RequestOutput | None:
        """Everything since the last call, as soon as there is something; None if closed."""
        while not self._is_closed:
            if self._output is not None:
                output, self._output = self._output, None
                return output
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        return None


class RequestStream:
    """An asynchronous iterator over one request's outputs; the last one has a `finish_reason`.

    Leaving it early in any way ends the request in the engine at once: `aclose`, the end of an `async with`,
    cancelling the task that waits in it, or dropping it.

    Raises, while iterating:
        QueueFull: too many requests wait; a later try may succeed.
        RequestRefused: the engine can never serve it; the message has the numbers.
        GrammarRefused: no output can have the form that it asks for, or none that can be guaranteed.
        RequestFailed: it went wrong later, for example while its adapter was loaded.
        EngineDead: the engine process is gone.
    """

    def __init__(self, request_id: str, buffer: OutputBuffer, abandon: Callable[[], None]) -> None:
        """`abandon` ends the request in the engine. It may be called from any thread, when this object is collected
        as garbage."""
        self.request_id = request_id
        self._buffer = buffer
        self._is_over = False
        self._abandon = weakref.finalize(self, abandon)
        self._abandon.atexit = False

    @property
    def usage(self) -> Usage:
        """What the request has come to, with what nobody has read: after `aclose`, what it came to in all."""
        return self._buffer.usage

    def __aiter__(self) -> "RequestStream":
        return self

    async def __anext__(self) -> RequestOutput:
        if self._is_over:
            raise StopAsyncIteration
        try:
            output = await self._buffer.take()
        except BaseException:  # cancelled, or the request failed
            await self.aclose()
            raise
        if output is None:
            raise StopAsyncIteration
        if output.finish_reason is not None:
            self._is_over = True
            self._abandon.detach()
        if output.error is not None:
            is_unmet = output.finish_reason is FinishReason.UNMET
            raise GrammarUnmet(output.error) if is_unmet else RequestFailed(output.error)
        return output

    async def aclose(self) -> None:
        """Ends the request if it is unfinished. May be called at any time, more than once."""
        self._is_over = True
        self._buffer.close()
        self._abandon()

    async def __aenter__(self) -> "RequestStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
