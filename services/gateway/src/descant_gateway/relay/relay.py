"""Carries a request to a backend and the reply back, and to another backend or model where one does not answer.

Before the first byte of a reply everything may still be tried; after it nothing can be taken back, so a stream that
breaks ends with an error event in OpenAI's shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from descant_gateway.admitted_call import AdmittedCall
from descant_gateway.catalogue.routing_policy import FailureKind, Fallback
from descant_gateway.catalogue.snapshot import Backend, Catalogue, ModelRoute
from descant_gateway.errors import ClientLeft, ClientTimeUp, data_must_stay
from descant_gateway.providers import PROVIDERS
from descant_gateway.relay.deadlines import Timeouts, timeouts_for
from descant_gateway.relay.ended_usage import NEVER_BEGUN, ask_ended_usage
from descant_gateway.relay.exchange import Attempt, Exchange
from descant_gateway.relay.failures import BackendFailed, Refusal, add_to_answer, nobody_serves
from descant_gateway.relay.shadow import Shadows
from descant_gateway.routing.affinity import affinity_of
from descant_gateway.routing.backends import Backends
from descant_gateway.routing.canary import variant_of
from descant_gateway.routing.in_flight import InFlight
from descant_gateway.routing.route import Candidates, Wanted, route
from descant_gateway.usage.meter import PromptTokensDetails, Usage

BACKEND_HEADER: Final = b"x-descant-backend"
REASON_HEADER: Final = b"x-descant-route-reason"
"""How the model was come to, if it is not the one that was asked for, and why this backend of its."""

_log = structlog.get_logger("descant_gateway.relay")


@dataclass(frozen=True, slots=True)
class Upstreams:
    """What the relay works with, made once in `app`."""

    backends: Backends
    shadows: Shadows
    timeouts: Timeouts
    """For a model that says nothing else."""


async def relay(admitted: AdmittedCall, catalogue: Catalogue, upstreams: Upstreams) -> None:
    """Answers the call from the first backend that takes it. ApiError if none does, ClientLeft if the client goes.

    A client that goes cancels the request upstream at once: closing the connection is how backends are told. So does
    one whose own time is up (ClientTimeUp), which is no failure of the backend's and pays as one that goes.
    """
    passage = _Passage(admitted, catalogue, upstreams)
    try:
        async with admitted.call.cancelled_on_disconnect():
            await passage.run()
    except (ClientLeft, ClientTimeUp):
        await passage.learn_usage()
        raise
    if admitted.meter.failure:
        await passage.learn_usage()


class _Passage:
    """One request on its way through models and backends."""

    __slots__ = ("_admitted", "_backend", "_backends", "_catalogue", "_shadows", "_timeouts")

    def __init__(self, admitted: AdmittedCall, catalogue: Catalogue, upstreams: Upstreams) -> None:
        self._admitted = admitted
        self._catalogue = catalogue
        self._backends = upstreams.backends
        self._shadows = upstreams.shadows
        time_limits = admitted.model.policy.time_limits
        self._timeouts = timeouts_for(admitted.call.headers, time_limits, upstreams.timeouts)
        self._backend: Backend | None = None

    async def run(self) -> None:
        """The model, or its canary; then, where they failed, its fallbacks."""
        model, is_canary = variant_of(self._admitted, self._catalogue)
        self._backends.retry_budget.deposit()
        self._shadows.offer(self._admitted, self._catalogue)
        failure = await self._try(
            model, "canary" if is_canary else "", may_wait=not self._admitted.model.policy.has_way_out
        )
        for fallback in self._fallbacks(is_canary=is_canary):
            if failure is not None and failure.kind in fallback.on:
                failure = await self._fall_back(fallback, failure)
        if failure is not None:
            await self._refuse(failure)

    async def learn_usage(self) -> None:
        """After a reply that was cut: an engine of ours says what it generated, read or not."""
        meter, backend = self._admitted.meter, self._backend
        if backend is None or not meter.is_generating or self._backends.state(backend.name).report is None:
            return
        ended = await ask_ended_usage(self._backends.session, backend, self._admitted.ticket.charge_id)
        if ended is None or (ended == NEVER_BEGUN and meter.first_byte_at is not None):
            return  # the one that answers is not the one that served: another replica, or started anew
        details = PromptTokensDetails(cached_tokens=ended.cached_tokens)
        meter.usage = Usage(ended.prompt_tokens, max(ended.completion_tokens, meter.content.total), details)

    # Models

    def _fallbacks(self, *, is_canary: bool) -> Iterator[Fallback]:
        if is_canary:
            yield Fallback(model=self._admitted.model.name)
        yield from self._admitted.model.policy.fallbacks

    async def _fall_back(self, fallback: Fallback, failure: BackendFailed) -> BackendFailed | None:
        model = self._catalogue.models.get(fallback.model)
        if model is None:
            return failure
        candidates = self._route(model)
        if not candidates.backends and candidates.is_kept_inside:
            return add_to_answer(failure, data_must_stay(model.name, self._team))
        if not candidates.backends:
            return failure
        _log.warning("fallback", model=self._admitted.model.name, to=model.name, why=str(failure))
        return await self._try(model, f"fallback:{failure.kind.value}", may_wait=True)

    async def _try(self, model: ModelRoute, via: str, *, may_wait: bool) -> BackendFailed | None:
        """None once the call is answered. `may_wait`: backends that are full may queue it."""
        candidates = self._route(model)
        if not candidates.backends:
            return self._nobody(model, candidates)
        if candidates.is_saturated and not may_wait:
            return nobody_serves(model.name, FailureKind.SATURATION, "every backend is full")
        return await self._try_each(model, candidates, via)

    def _nobody(self, model: ModelRoute, candidates: Candidates) -> BackendFailed:
        if candidates.is_kept_inside:
            answer = data_must_stay(model.name, self._team)
            return BackendFailed(FailureKind.CONNECT, answer, may_repeat=False, why="data must stay in the house")
        return nobody_serves(model.name, FailureKind.CONNECT, "no backend is healthy")

    def _route(self, model: ModelRoute) -> Candidates:
        admitted, team = self._admitted, self._admitted.caller.team
        members, tenant = admitted.request.members, admitted.tenant
        has_choice = len(model.backends) > 1
        affinity = affinity_of(admitted.call.headers, members, tenant, model.name) if has_choice else None
        return route(Wanted(model, affinity, team.allows_external), self._backends.look(self._catalogue))

    @property
    def _team(self) -> str:
        return self._admitted.caller.team.name

    # Backends

    async def _try_each(self, model: ModelRoute, candidates: Candidates, via: str) -> BackendFailed | None:
        """The next one only while that can't break it too, and while the budget lasts."""
        reason = candidates.reason.value
        for backend in candidates.backends:
            failure = await self._attempt(model, backend, f"{via};{reason}" if via else reason)
            if failure is None or not failure.may_repeat or not self._backends.retry_budget.withdraw():
                break
            reason = f"retry:{failure.kind.value}"
        return failure

    async def _attempt(self, model: ModelRoute, backend: Backend, reason: str) -> BackendFailed | None:
        admitted, provider = self._admitted, PROVIDERS[backend.protocol]
        body = provider.body(admitted.request, model.upstream_name)
        admitted.call.route_headers = ((BACKEND_HEADER, backend.name.encode()), (REASON_HEADER, reason.encode()))
        admitted.meter.model = model
        at = admitted.ticket.admitted_at
        admitted.meter.price = None if model is admitted.model else self._catalogue.price_of(model, at)
        self._backend = backend
        exchange = Exchange(admitted, Attempt(backend, provider, body, self._timeouts), self._backends.session)
        with self._backends.in_flight(backend) as flight:
            try:
                await exchange.run()
            except BackendFailed as failure:
                admitted.meter.is_generating = False
                self._judge(flight, "" if not failure.blames_backend else str(failure))
                _log.warning("backend did not answer", backend=backend.name, why=str(failure))
                return failure
            self._judge(flight, exchange.break_reason)
        return None

    @staticmethod
    def _judge(flight: InFlight, fault: str) -> None:
        if fault:
            flight.failed(fault)
        else:
            flight.succeeded()

    # The end

    async def _refuse(self, failure: BackendFailed) -> None:
        """Raises the ApiError, or passes on what the backend itself said."""
        refusal = failure.answer
        if not isinstance(refusal, Refusal):
            raise refusal from failure
        self._admitted.meter.status = refusal.status
        await self._admitted.call.answer(refusal.status, refusal.headers, refusal.body)
