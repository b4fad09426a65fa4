"""The end of every admitted request, whatever it was: the ticket settled, one ledger row, the metrics, one log line."""

import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Protocol, Self

import structlog
from msgspec.structs import replace

from descant_gateway.admitted_call import AdmittedCall
from descant_gateway.catalogue.snapshot import Price
from descant_gateway.errors import ClientLeft, ClientTimeUp
from descant_gateway.limits.limit import NOTHING, Amounts
from descant_gateway.limits.output_estimate import OutputEstimates
from descant_gateway.process.metrics import Metrics
from descant_gateway.request import InferenceRequest
from descant_gateway.usage.meter import NO_CHARGE, Charge, Meter
from descant_gateway.usage.record import Outcome, UsageRecord
from descant_wire.errors import ApiError

CLIENT_LEFT_STATUS: Final = 499

_log = structlog.get_logger("descant_gateway.request")


class UsageSink(Protocol):
    def begin(self, record: UsageRecord) -> None:
        """What is to be booked if this process dies before it appends the charge's record. Never raises."""

    def append(self, record: UsageRecord) -> None:
        """Takes the record at once; writes it later. Never raises."""


class Settlement:
    """`with` it around all that follows admission. Nothing in it waits, so no cancellation can cut it short."""

    __slots__ = ("_admitted", "_begun", "_ledger", "_metrics", "_outputs")

    def __init__(self, admitted: AdmittedCall, ledger: UsageSink, metrics: Metrics, outputs: OutputEstimates) -> None:
        self._admitted = admitted
        self._begun = begun_record(admitted)
        self._ledger = ledger
        self._metrics = metrics
        self._outputs = outputs

    def __enter__(self) -> Self:
        self._ledger.begin(self._begun)
        self._metrics.admitted()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        admitted = self._admitted
        outcome = outcome_of(exc, admitted.meter)
        charge = charge_of(outcome, admitted.meter, admitted.request)
        price = admitted.meter.price or admitted.ticket.price
        cost = price.cost(charge.prompt_tokens, charge.cached_tokens, charge.completion_tokens)
        admitted.ticket.settle(amounts_of(outcome, charge, cost))
        record = self._record(outcome, charge, cost, price, exc)
        self._ledger.append(record)
        is_new = outcome is Outcome.COMPLETED and admitted.meter.is_generating  # and not out of the cache
        if is_new and admitted.request.max_tokens is None:
            self._outputs.learn(record.key_id, record.model, charge.completion_tokens // admitted.request.max_choices)
        self._metrics.settled(record)
        _log_request(record, admitted.meter)

    def _record(
        self, outcome: Outcome, charge: Charge, cost: int, price: Price, exc: BaseException | None
    ) -> UsageRecord:
        admitted, meter = self._admitted, self._admitted.meter
        return replace(
            self._begun,
            served_model=served_name(admitted),
            backend=meter.backend,
            outcome=outcome,
            status=status_of(exc, meter),
            prompt_tokens=charge.prompt_tokens,
            cached_tokens=charge.cached_tokens,
            completion_tokens=charge.completion_tokens,
            estimated=charge.is_estimated,
            cost_microdollars=cost,
            price_version=price.version,
            ttft_ms=None if meter.first_byte_at is None else _ms(meter.first_byte_at - admitted.call.started_at),
            duration_ms=_ms(time.perf_counter() - admitted.call.started_at),
        )


def begun_record(admitted: AdmittedCall) -> UsageRecord:
    """All that is known of a charge before anything is served."""
    caller, model = admitted.caller, admitted.model
    return UsageRecord(
        charge_id=admitted.ticket.charge_id,
        created_at=datetime.fromtimestamp(admitted.ticket.admitted_at, UTC),
        organization_id=caller.team.organization_id,
        team_id=caller.team.id,
        key_id=caller.key.id,
        project_id=caller.key.project_id,
        request_id=admitted.call.request_id,
        model=model.name,
        parent=model.parent,
        alias_of=model.target,
        backend="",
        endpoint=admitted.call.endpoint,
        stream=admitted.request.stream,
        tags=admitted.tags,
        outcome=Outcome.INTERRUPTED,
        status=0,
        prompt_tokens=0,
        cached_tokens=0,
        completion_tokens=0,
        estimated=True,
        ttft_ms=None,
        duration_ms=0,
    )


def served_name(admitted: AdmittedCall) -> str | None:
    served = admitted.meter.model or admitted.model
    name = served.target or served.name
    return None if name == admitted.model.name else name


def outcome_of(exc: BaseException | None, meter: Meter) -> Outcome:
    if isinstance(exc, ClientLeft | ClientTimeUp):
        return Outcome.CLIENT_LEFT
    if isinstance(exc, ApiError):
        return Outcome.REFUSED if exc.status < 500 else Outcome.UPSTREAM_FAILED
    if exc is not None or meter.failure:
        return Outcome.UPSTREAM_FAILED
    return Outcome.REFUSED if meter.status >= 400 else Outcome.COMPLETED


def charge_of(outcome: Outcome, meter: Meter, request: InferenceRequest) -> Charge:
    """A failure before the first byte is free; after it, what came through is paid for."""
    if outcome is Outcome.UPSTREAM_FAILED and meter.first_byte_at is None:
        return NO_CHARGE
    return meter.charge(request)


def amounts_of(outcome: Outcome, charge: Charge, cost_microdollars: int) -> Amounts:
    """What the limits keep: a backend's failure does not count as a request either."""
    if outcome is Outcome.UPSTREAM_FAILED and charge is NO_CHARGE:
        return NOTHING
    return Amounts(1, charge.tokens, cost_microdollars)


def status_of(exc: BaseException | None, meter: Meter) -> int:
    if isinstance(exc, ClientLeft):
        return CLIENT_LEFT_STATUS
    if isinstance(exc, ApiError):
        return exc.status
    return meter.status or 500


def _log_request(record: UsageRecord, meter: Meter) -> None:
    _log.info(
        "request",
        request_id=record.request_id,
        key_id=record.key_id.hex,
        team_id=record.team_id.hex,
        model=record.model,
        parent=record.parent,
        served_model=record.served_model,
        backend=record.backend,
        endpoint=record.endpoint,
        stream=record.stream,
        outcome=record.outcome.value,
        status=record.status,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        completion_tokens=record.completion_tokens,
        estimated=record.estimated,
        cost_microdollars=record.cost_microdollars,
        ttft_ms=record.ttft_ms,
        duration_ms=record.duration_ms,
        failure=meter.failure or None,
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
