"""The upstreams: one HTTP session to all of them, what they are busy with, and whether they are well."""

import asyncio
import random
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final

import aiohttp
import structlog

from descant_gateway.catalogue.snapshot import Backend, Catalogue
from descant_gateway.egress.connections import for_backends, guarded_connector
from descant_gateway.routing.backend_state import BackendState
from descant_gateway.routing.in_flight import InFlight
from descant_gateway.routing.load_feed import LoadFeed
from descant_gateway.routing.retry_budget import RetryBudget
from descant_gateway.routing.route import Look

_PROBE_TIMEOUT_S: Final = 2.0
_PROBE_PATHS: Final = ("/ready", "/health")
"""The first one that the backend knows decides. A backend that knows neither is well if it answers at all."""
_MAX_SILENT_PROBES: Final = 2
"""So many in a row without an answer in time take a backend out (failureThreshold in Kubernetes, unhealthy_threshold in
Envoy): one alone may be a machine that stood still for a moment, this one or the backend's. Who refuses a connection or
says that he is not ready is out at once, and who answers is back at once."""


class Backends:
    """Owns the session and every `BackendState`. Follows the catalogue: a new backend is there with the next probe."""

    def __init__(
        self, catalogue: Callable[[], Catalogue], *, connect_timeout_s: float, health_interval_s: float
    ) -> None:
        self.retry_budget = RetryBudget()
        self._catalogue = catalogue
        self._connect_timeout_s = connect_timeout_s
        self._health_interval_s = health_interval_s
        self._states: dict[str, BackendState] = {}
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._on_probed: list[Callable[[], None]] = []
        self._log = structlog.get_logger("descant_gateway.routing.backends")

    @property
    def states(self) -> Mapping[str, BackendState]:
        return self._states

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("Backends was not started")
        return self._session

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=guarded_connector(for_backends, keepalive_s=30),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            trust_env=False,
        )
        await self.probe_all()
        loads = LoadFeed(self._session)
        self._tasks = [
            asyncio.create_task(self._keep_probing(), name="health-probes"),
            asyncio.create_task(loads.run(lambda: self._catalogue().backends, self.state), name="load-feed"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def state(self, name: str) -> BackendState:
        state = self._states.get(name)
        if state is None:
            state = self._states[name] = BackendState()
        return state

    def look(self, catalogue: Catalogue) -> Look:
        return Look(catalogue, self._states, monotonic())

    def on_probed(self, callback: Callable[[], None]) -> None:
        """`callback` is called after each round of probes: backends may have come, gone, or been given more room."""
        self._on_probed.append(callback)

    def in_flight(self, backend: Backend) -> InFlight:
        return InFlight(backend.name, self.state(backend.name))

    # Health

    def mark(self, backend: Backend, *, is_healthy: bool, reason: str = "") -> None:
        """What a probe found out. One log line for each change."""
        state = self.state(backend.name)
        if state.is_healthy == is_healthy:
            return
        state.is_healthy = is_healthy
        if is_healthy:
            self._log.info("backend is healthy", backend=backend.name)
        else:
            self._log.warning("backend is not healthy", backend=backend.name, reason=reason)

    async def probe_all(self) -> None:
        backends = self._catalogue().backends
        for name in self._states.keys() - backends.keys():
            if not self._states[name].num_in_flight:
                del self._states[name]
        await asyncio.gather(*(self._probe(backend) for backend in backends.values()))

    async def _keep_probing(self) -> None:
        while True:
            # Spread, so that replicas that started together don't probe together for ever.
            await asyncio.sleep(self._health_interval_s * random.uniform(0.8, 1.2))
            await self.probe_all()
            for callback in self._on_probed:
                callback()

    async def _probe(self, backend: Backend) -> None:
        state = self.state(backend.name)
        num_silent, state.num_silent_probes = state.num_silent_probes, 0
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                status = await self._probe_status(backend)
        except TimeoutError:
            state.num_silent_probes = num_silent + 1
            if state.num_silent_probes >= _MAX_SILENT_PROBES:
                reason = f"no answer to {state.num_silent_probes} probes in a row, within {_PROBE_TIMEOUT_S:g} s each"
                self.mark(backend, is_healthy=False, reason=reason)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # ValueError: a name that no resolver takes. It must not end the probing of the others.
            self.mark(backend, is_healthy=False, reason=f"no answer: {error!r}")
        else:
            self.mark(backend, is_healthy=status < 500, reason=f"status {status}")

    async def _probe_status(self, backend: Backend) -> int:
        status = 404
        for path in _PROBE_PATHS:
            async with self.session.get(backend.base_url + path, allow_redirects=False) as response:
                status = response.status
            if status != 404:
                break
        return status
