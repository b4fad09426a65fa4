"""May this request run now? Every limit on its path is reserved at once; the ticket gives back what is not used."""

import time
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self
from uuid import UUID

from descant_gateway.catalogue.snapshot import FREE, Catalogue, ModelRoute, Price
from descant_gateway.identity.authenticate import Caller
from descant_gateway.limits.limit import (
    NOTHING,
    Amounts,
    Limit,
    Standing,
    exceeded,
    too_large,
    would_have_refused,
)
from descant_gateway.limits.limiter import Limiter, Reservation
from descant_gateway.limits.local_shares import LocalShares
from descant_gateway.limits.output_estimate import OutputEstimates
from descant_gateway.limits.paths import LimitPath, LimitPaths
from descant_gateway.limits.script_queue import ValkeyAway
from descant_gateway.request import InferenceRequest
from descant_wire.errors import ApiError, service_unavailable

LOCAL_HEADER: Final = "x-descant-limits"
"""Marks replies to requests that were admitted without Valkey."""


class LimitWatcher(Protocol):
    """Who is told what limits come to; must neither wait nor raise."""

    def look(self, path: LimitPath, standings: tuple[Standing, ...]) -> None:
        """A request was reserved, on a path where some limit has warning thresholds."""

    def shadow_refused(self, limit: Limit) -> None:
        """A limit that only counts would have refused a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What admission needs and keeps, made once in `app`."""

    limiter: Limiter
    local_shares: LocalShares
    paths: LimitPaths
    outputs: OutputEstimates
    watcher: LimitWatcher


class Ticket:
    """One admitted request's hold on its limits. Closed exactly once: by `settle`, or by leaving its `with` block.

    Closing only hands the settlement over and never waits, so that no cancellation can come in between.
    """

    __slots__ = (
        "_admission",
        "_reservation",
        "admitted_at",
        "headers",
        "is_closed",
        "is_local",
        "price",
        "used_tokens",
    )

    def __init__(
        self,
        reservation: Reservation,
        headers: dict[str, str],
        admission: Admission,
        *,
        price: Price = FREE,
        is_local: bool = False,
        admitted_at: float | None = None,
    ) -> None:
        self.headers = headers
        """What the reply tells of the limits."""
        self.admitted_at = time.time() if admitted_at is None else admitted_at
        """Seconds since 1970, by the clock that its limits' periods go by: it counts in the periods of this moment."""
        self.price = price
        self.is_local = is_local
        """Admitted while Valkey was away, from this process's share."""
        self.is_closed = False
        self.used_tokens = 0
        """Once it is settled."""
        self._reservation = reservation
        self._admission = admission

    @property
    def charge_id(self) -> UUID:
        return self._reservation.charge_id

    @property
    def reserved_tokens(self) -> int:
        return self._reservation.amounts.tokens

    def settle(self, used: Amounts) -> None:
        """Books the truth: less than reserved is given back, more becomes debt."""
        if self.is_closed:
            raise RuntimeError(f"the ticket {self.charge_id} was closed already")
        self.is_closed = True
        self.used_tokens = used.tokens
        if not self._reservation.path.limits:
            return
        if self.is_local:
            self._admission.local_shares.settle(self.charge_id, used)
            self._admission.limiter.book(self._reservation, used)
        else:
            self._admission.limiter.settle(self._reservation, used)

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


async def admit(
    caller: Caller, request: InferenceRequest, model: ModelRoute, catalogue: Catalogue, admission: Admission
) -> Ticket:
    """Reserves an estimate on every limit of the path.

    429 with an exact Retry-After. While Valkey is away, what the configuration says of each class: this process's
    share, or 503. A caller without limits needs no Valkey.
    """
    path, price = admission.paths.of(catalogue, caller, model), catalogue.price_of(model, time.time())
    amounts = estimated_amounts(caller, request, model, price, admission.outputs)
    hopeless = path.too_small(amounts)
    if hopeless is not None:
        raise too_large(hopeless, amounts)
    reservation = Reservation(uuid.uuid4(), path, amounts)
    if not path.limits:
        return Ticket(reservation, {}, admission, price=price)
    try:
        decision = await admission.limiter.reserve(reservation)
    except ValkeyAway:
        # Under an id of its own: the first one may be reserved all the same, and is on its way to be given back.
        reservation = Reservation(uuid.uuid4(), path, amounts)
        if admission.local_shares.reserve(reservation.charge_id, path.limits, amounts):
            return Ticket(reservation, {LOCAL_HEADER: "local"}, admission, price=price, is_local=True)
        raise _limits_unavailable() from None
    if admission.local_shares.listens:
        admission.local_shares.hear(decision.standings)
    if not decision.is_granted:
        raise exceeded(decision.standings, amounts)
    if path.num_shadows or path.num_warnings:
        _watch(path, decision.standings, admission.watcher)
    return Ticket(reservation, decision.headers, admission, price=price, admitted_at=decision.now)


def estimated_amounts(
    caller: Caller, request: InferenceRequest, model: ModelRoute, price: Price, outputs: OutputEstimates
) -> Amounts:
    """Prompt and the longest answers that the request allows; if it sets no bound, those that its key usually gets."""
    longest = request.max_tokens
    if longest is None:
        longest = outputs.estimate(caller.key.id, model.name, model.max_output_tokens)
    output = longest * request.max_choices
    prompt = request.estimated_prompt_tokens
    return Amounts(1, prompt + output, price.cost(prompt, 0, output))


def _watch(path: LimitPath, standings: tuple[Standing, ...], watcher: LimitWatcher) -> None:
    if path.num_shadows:
        for standing in standings:
            if would_have_refused(standing):
                watcher.shadow_refused(standing.limit)
    if path.num_warnings:
        watcher.look(path, standings)


def _limits_unavailable() -> ApiError:
    message = "The rate limits can't be checked right now. Your key is fine; try again shortly."
    return service_unavailable(message, retry_after_s=1, code="limits_unavailable")
