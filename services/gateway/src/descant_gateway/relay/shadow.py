"""Copies of a share of the requests for another model, whose replies nobody gets and nobody pays for.

A copy runs beside the request and is dropped where it could be felt: when too many are under way, when the other
model's backends are full, when it takes too long.
"""

import asyncio
import random
from typing import Final

import aiohttp
import structlog

from descant_gateway.admitted_call import AdmittedCall
from descant_gateway.catalogue.snapshot import Backend, Catalogue, ModelRoute
from descant_gateway.process.metrics import Metrics
from descant_gateway.providers import PROVIDERS
from descant_gateway.request import InferenceRequest
from descant_gateway.routing.backends import Backends
from descant_gateway.routing.route import Wanted, route
from descant_wire.errors import ApiError

MAX_UNDER_WAY: Final = 16
TIMEOUT_S: Final = 120.0
MAX_PROMPT_TOKENS: Final = 65_536

_log = structlog.get_logger("descant_gateway.relay.shadow")


class Shadows:
    """Owns the copies under way."""

    def __init__(self, backends: Backends, metrics: Metrics, *, max_under_way: int = MAX_UNDER_WAY) -> None:
        self._backends = backends
        self._metrics = metrics
        self._max_under_way = max_under_way
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, admitted: AdmittedCall, catalogue: Catalogue) -> None:
        """Perhaps sends a copy. Never waits and never raises."""
        shadow = admitted.model.policy.shadow
        if shadow is None or random.random() * 100 >= shadow.percent:
            return
        model = catalogue.models.get(shadow.model)
        backend = None if model is None else self._backend_for(model, admitted, catalogue)
        if model is None or backend is None:
            self._metrics.shadow_copied("dropped")
            return
        task = asyncio.create_task(self._send(backend, model, admitted.request), name="shadow")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _backend_for(self, model: ModelRoute, admitted: AdmittedCall, catalogue: Catalogue) -> Backend | None:
        if len(self._tasks) >= self._max_under_way or admitted.request.estimated_prompt_tokens > MAX_PROMPT_TOKENS:
            return None
        wanted = Wanted(model, allows_external=admitted.caller.team.allows_external)
        candidates = route(wanted, self._backends.look(catalogue))
        return candidates.backends[0] if candidates.backends and not candidates.is_saturated else None

    async def _send(self, backend: Backend, model: ModelRoute, request: InferenceRequest) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                with self._backends.in_flight(backend):
                    status = await self._exchange(backend, model, request)
            self._metrics.shadow_copied("answered" if status < 400 else "failed")
        except (aiohttp.ClientError, OSError, TimeoutError, ApiError) as error:
            self._metrics.shadow_copied("failed")
            _log.info("a shadow copy failed", backend=backend.name, model=model.name, why=repr(error))

    async def _exchange(self, backend: Backend, model: ModelRoute, request: InferenceRequest) -> int:
        """The reply's status; the rest of it is read and forgotten."""
        provider = PROVIDERS[backend.protocol]
        body, headers = provider.body(request, model.upstream_name), provider.headers(backend)
        async with self._backends.session.post(
            provider.url(backend, request), data=body, headers=headers, allow_redirects=False
        ) as response:
            while await response.content.readany():
                pass
            return response.status
