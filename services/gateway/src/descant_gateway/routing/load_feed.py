"""Asks the backends that are engines of ours how busy they are and which adapters they hold, four times a second."""

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from time import monotonic
from typing import Final

import aiohttp
import msgspec

from descant_gateway.catalogue.snapshot import Backend, Protocol
from descant_gateway.routing.backend_state import BackendState, Report
from descant_wire.load import LOAD_PATH, LOAD_VERSION, EngineLoad

INTERVAL_S: Final = 0.25
ANSWER_TIMEOUT_S: Final = 1.0
ASK_AGAIN_S: Final = 30.0
"""A backend that publishes nothing is asked again after so long: it may have been replaced."""

_FAILURES: Final = (aiohttp.ClientError, OSError, TimeoutError, ValueError, msgspec.MsgspecError)
_decoder = msgspec.json.Decoder(EngineLoad)


class LoadFeed:
    """Writes `report` and `adapters` of the states. One question to a backend at a time; a slow one delays no other."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._silent_until: dict[str, float] = {}

    async def run(self, backends: Callable[[], Mapping[str, Backend]], state: Callable[[str], BackendState]) -> None:
        """Until it is cancelled."""
        try:
            while True:
                for backend in backends().values():
                    if self._is_due(backend):
                        self._asking[backend.name] = asyncio.create_task(self._ask(backend, state(backend.name)))
                await asyncio.sleep(INTERVAL_S)
        finally:
            for task in self._asking.values():
                task.cancel()
            await asyncio.gather(*self._asking.values(), return_exceptions=True)

    def _is_due(self, backend: Backend) -> bool:
        return (
            backend.protocol is Protocol.OPENAI
            and not backend.is_external
            and backend.name not in self._asking
            and monotonic() >= self._silent_until.get(backend.name, 0.0)
        )

    async def _ask(self, backend: Backend, state: BackendState) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._read(backend, state)
        except _FAILURES:
            pass  # the report gets old, and an old one is not believed
        finally:
            del self._asking[backend.name]

    async def _read(self, backend: Backend, state: BackendState) -> None:
        num_in_flight = state.num_in_flight
        known = {} if state.report is None else {"known": str(state.report.load.residency)}
        headers = {} if backend.api_key is None else {"authorization": f"Bearer {backend.api_key}"}
        url = backend.base_url + LOAD_PATH
        async with self._session.get(url, params=known, headers=headers, allow_redirects=False) as response:
            if response.status != HTTPStatus.OK:
                self._keep_silent(backend, state, response.status)
                return
            load = _decoder.decode(await response.read())
        if load.version != LOAD_VERSION:
            self._keep_silent(backend, state, HTTPStatus.NOT_FOUND)
            return
        if load.adapters is not None:
            state.adapters = load.adapters
        state.report = Report(load, monotonic(), num_in_flight)

    def _keep_silent(self, backend: Backend, state: BackendState, status: int) -> None:
        """Something else than an engine of ours. One that loads its model says 503, and is asked again."""
        if status < 500:
            state.report = None
            self._silent_until[backend.name] = monotonic() + ASK_AGAIN_S
