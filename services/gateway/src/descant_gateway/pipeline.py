"""The path of a request, in five verbs: authenticate, admit, route, relay, settle. Read this file first.

`relay` asks `route` for the backends, and again where one fails that a fallback is configured for.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

from descant_gateway.admitted_call import AdmittedCall
from descant_gateway.call import Call
from descant_gateway.catalogue.snapshot import Catalogue
from descant_gateway.dialects import Dialect
from descant_gateway.identity.authenticate import Caller, authenticate, permitted_endpoint, permitted_model
from descant_gateway.identity.internal_channel import InternalChannel
from descant_gateway.ledger.settle import Settlement, UsageSink
from descant_gateway.limits.admit import Admission, admit
from descant_gateway.limits.limiter import Limiter
from descant_gateway.process.metrics import Metrics
from descant_gateway.relay.relay import Upstreams, relay
from descant_gateway.request import InferenceRequest, read_request
from descant_gateway.response_cache import ResponseCache
from descant_gateway.routing.backends import Backends
from descant_gateway.traces import RequestSpan
from descant_gateway.usage.tags import read_tags
from descant_gateway.waiting.fair_share import FairShare
from descant_wire.tracing import Tracer

_NO_SPAN: Final = nullcontext()


class CatalogueSource(Protocol):
    current: Catalogue
    """The newest snapshot."""

    @property
    def age_s(self) -> float:
        """Seconds since it was last seen to be the database's."""


class PromptSink(Protocol):
    def record(self, caller: Caller, request: InferenceRequest, request_id: str) -> None:
        """Takes the prompt of a team that wants it logged. Never waits and never raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """What the path needs, made once in `app`."""

    feed: CatalogueSource
    admission: Admission
    fair_share: FairShare
    upstreams: Upstreams
    ledger: UsageSink
    metrics: Metrics
    channel: InternalChannel
    tracer: Tracer | None
    """None: no traces."""
    prompt_log: PromptSink
    response_cache: ResponseCache
    pepper: str
    max_body_bytes: int
    dialects: Mapping[str, Dialect]
    """By the endpoint whose clients speak it; the others' requests go to backends as they are."""

    def span(self, admitted: AdmittedCall) -> AbstractContextManager[object]:
        return _NO_SPAN if self.tracer is None else RequestSpan(self.tracer, admitted)

    @property
    def backends(self) -> Backends:
        return self.upstreams.backends

    @property
    def limiter(self) -> Limiter:
        return self.admission.limiter


async def serve(call: Call, gateway: Gateway) -> None:
    """Answers the call. Raises ApiError for a refusal that is still to be written, ClientLeft if nobody waits."""
    catalogue = gateway.feed.current
    caller = authenticate(call.authorization, call.client_address, catalogue, gateway.pepper)
    permitted_endpoint(caller, call.endpoint)
    await serve_caller(call, caller, catalogue, gateway)


async def serve_caller(call: Call, caller: Caller, catalogue: Catalogue, gateway: Gateway) -> None:
    """The four verbs after authentication. Raises as `serve` does.

    One snapshot of the catalogue serves the whole request. Once there is a ticket, leaving the `with` blocks, for
    whatever reason, settles it, ends the turn at the backends and books the request, exactly once. While backends are
    saturated the turn is waited for; a request that never gets it is refunded and not booked.
    """
    request = await _read(call, caller, gateway.max_body_bytes)
    model = permitted_model(caller, request.model, catalogue)
    if call.translation is not None and call.translation.background is not None:
        await call.translation.background.begin(call, caller)
        return
    tags = read_tags(call.headers, request.members)
    with await admit(caller, request, model, catalogue, gateway.admission) as ticket:
        call.add_reply_headers(ticket.headers)
        async with gateway.fair_share.turn(call, caller.team, model, ticket):
            admitted = AdmittedCall(
                call=call,
                caller=caller,
                request=request,
                model=model,
                ticket=ticket,
                identity=gateway.channel.identity_of(caller.team),
                tags=tags,
            )
            with Settlement(admitted, gateway.ledger, gateway.metrics, gateway.admission.outputs):
                if caller.team.prompt_log_days is not None:
                    gateway.prompt_log.record(caller, request, call.request_id)
                with gateway.span(admitted):
                    await gateway.response_cache.answer(admitted, lambda: relay(admitted, catalogue, gateway.upstreams))


async def _read(call: Call, caller: Caller, max_body_bytes: int) -> InferenceRequest:
    """The request; of another dialect, what says the same to a backend."""
    body = await call.read_body(max_body_bytes)
    if call.dialect is None:
        return read_request(call.endpoint, body)
    call.translation = await call.dialect.translate(body, caller)
    return read_request(call.translation.endpoint, call.translation.body)
