"""A request at a backend, for as long as it takes there."""

from time import monotonic
from types import TracebackType
from typing import Final, Self

import structlog

from descant_gateway.routing.backend_state import BackendState

_log: Final = structlog.get_logger("descant_gateway.routing.in_flight")


class InFlight:
    """`with` it around a request: in the block `succeeded` or `failed` may be called once, to tell of the backend."""

    __slots__ = ("_is_trial", "_name", "_state")

    def __init__(self, name: str, state: BackendState) -> None:
        self._name = name
        self._state = state
        self._is_trial = False
        """And not told of yet: the breaker of a backend that was failing waits for this request."""

    def __enter__(self) -> Self:
        self._state.num_in_flight += 1
        self._state.num_sent += 1
        self._is_trial = self._state.breaker.begin()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._state.num_in_flight -= 1
        if self._take_trial():
            self._state.breaker.abandoned()

    def succeeded(self) -> None:
        """The backend answered, if only with a refusal."""
        breaker = self._state.breaker
        was_closed = breaker.is_closed
        breaker.succeeded(monotonic(), is_trial=self._take_trial())
        if breaker.is_closed and not was_closed:
            _log.info("backend answers again", backend=self._name)

    def failed(self, reason: str) -> None:
        breaker = self._state.breaker
        was_closed = breaker.is_closed
        breaker.failed(monotonic(), is_trial=self._take_trial())
        if was_closed and not breaker.is_closed:
            _log.warning("backend keeps failing and gets no requests for a while", backend=self._name, why=reason)

    def _take_trial(self) -> bool:
        is_trial, self._is_trial = self._is_trial, False
        return is_trial
