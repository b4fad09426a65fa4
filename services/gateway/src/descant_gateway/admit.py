"""May this request run now? Every limit on its path is reserved at once; the ticket gives back what is not used."""

import uuid
from types import TracebackType
from typing import Self
from uuid import UUID

from descant_gateway.authenticate import Caller
from descant_gateway.catalogue import ModelRoute
from descant_gateway.limiter import Limiter, Reservation
from descant_gateway.limits import (
    NOTHING,
    Amounts,
    Standing,
    can_never_hold,
    exceeded,
    limits_on_path,
    rate_limit_headers,
    too_large,
)
from descant_gateway.request import InferenceRequest
from descant_gateway.script_queue import ValkeyAway
from descant_wire.errors import service_unavailable


class Ticket:
    """One admitted request's hold on its limits. Closed exactly once: by `settle`, or by leaving its `with` block.

    Closing only hands the settlement over and never waits, so that no cancellation can come in between.
    """

    __slots__ = ("_limiter", "_reservation", "is_closed", "standings")

    def __init__(self, reservation: Reservation, standings: tuple[Standing, ...], limiter: Limiter) -> None:
        self.standings = standings
        self.is_closed = False
        self._reservation = reservation
        self._limiter = limiter

    @property
    def charge_id(self) -> UUID:
        return self._reservation.charge_id

    @property
    def headers(self) -> dict[str, str]:
        return rate_limit_headers(self.standings)

    def settle(self, used: Amounts) -> None:
        """Books the truth: less than reserved is given back, more becomes debt."""
        if self.is_closed:
            raise RuntimeError(f"the ticket {self.charge_id} was closed already")
        self.is_closed = True
        if self._reservation.limits:
            self._limiter.settle(self._reservation, used)

    def refund(self) -> None:
        """Gives everything back: nothing was used."""
        self.settle(NOTHING)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.is_closed:
            self.refund()


async def admit(caller: Caller, request: InferenceRequest, model: ModelRoute, limiter: Limiter) -> Ticket:
    """Reserves an estimate on every limit of the path. 429 with an exact Retry-After, 503 while Valkey is away.

    A caller without limits needs no Valkey.
    """
    limits = limits_on_path(caller)
    amounts = Amounts(1, estimated_tokens(request, model))
    for limit in limits:
        if can_never_hold(limit, amounts):
            raise too_large(limit, amounts)
    reservation = Reservation(uuid.uuid4(), caller.team.organization_id, limits, amounts)
    if not limits:
        return Ticket(reservation, (), limiter)
    try:
        decision = await limiter.reserve(reservation)
    except ValkeyAway:
        message = "The rate limits can't be checked right now. Your key is fine; try again shortly."
        raise service_unavailable(message, retry_after_s=1, code="limits_unavailable") from None
    if not decision.is_granted:
        raise exceeded(decision.standings, amounts)
    return Ticket(reservation, decision.standings, limiter)


def estimated_tokens(request: InferenceRequest, model: ModelRoute) -> int:
    """Prompt and the longest answers that the request allows."""
    longest_answer = model.max_output_tokens if request.max_tokens is None else request.max_tokens
    return request.estimated_prompt_tokens + longest_answer * request.max_choices
