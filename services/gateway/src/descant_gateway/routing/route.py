"""Which backends may serve a request, best first: a pure function of the request and of a look at the backends.

1. Only available ones, and only in the house for a team whose data must stay there.
2. One with room before one that is full.
3. One within the load bound before one beyond it: at most LOAD_BOUND times its share of all that is going on
   ("Consistent Hashing with Bounded Loads", Mirrokni, Thorup, Zadimoghaddam, SODA 2018). That keeps 4 and 5 from
   piling everything onto one backend.
4. One that holds the adapter: on the GPU, then in host memory, then not at all.
5. The one that the request's session or prefix chooses; without such, the least busy for its weight.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from msgspec import Struct

from descant_gateway.catalogue.snapshot import Backend, Catalogue, ModelRoute
from descant_gateway.routing.affinity import Affinity, score
from descant_gateway.routing.backend_state import UNKNOWN, BackendState
from descant_wire.load import Tier

LOAD_BOUND: Final = 1.25
_TIER_RANKS: Final[Mapping[Tier | None, int]] = {"gpu": 0, "host": 1, None: 2}


class Reason(StrEnum):
    """Why the first candidate is the first."""

    ONLY = "only"
    LEAST_BUSY = "least_busy"
    SESSION = "session"
    PREFIX = "prefix"
    ADAPTER_ON_GPU = "adapter_gpu"
    ADAPTER_ON_HOST = "adapter_host"
    NO_OTHER = "no_other"
    """It keeps failing, and so do all others: better one more try than none (Envoy calls it the panic threshold)."""
    BOUNDED = "load_bound"
    """Its session, prefix or adapter would have chosen another, which is too busy."""


class Wanted(Struct, frozen=True):
    """What is decided on, of one request."""

    model: ModelRoute
    affinity: Affinity | None = None
    allows_external: bool = False


class Look(Struct, frozen=True):
    """The backends at a moment."""

    catalogue: Catalogue
    states: Mapping[str, BackendState]
    now: float
    """time.monotonic()."""


class Candidates(Struct, frozen=True):
    backends: Sequence[Backend]
    """Best first; empty if none may serve the request now."""
    reason: Reason = Reason.ONLY
    is_saturated: bool = False
    """All of them have as much as they take at once."""
    is_kept_inside: bool = False
    """There would be others, outside the house."""


class _Rated(Struct, frozen=True):
    backend: Backend
    weight: int
    pressure: float
    num_sent: int
    is_full: bool
    tier_rank: int


def route(wanted: Wanted, look: Look) -> Candidates:
    """The model's available backends, best first."""
    available, is_kept_inside = _available(wanted, look)
    if not available:
        return _last_resort(wanted, look, is_kept_inside)
    if len(available) == 1 and not is_kept_inside:
        backend = available[0][0]
        is_full = look.states.get(backend.name, UNKNOWN).is_full(backend, look.now)
        return Candidates((backend,), is_saturated=is_full)
    rated = [_rate(backend, weight, wanted.model, look) for backend, weight in available]
    ranked, reason = _rank(rated, wanted)
    return Candidates(
        tuple(each.backend for each in ranked),
        reason=reason,
        is_saturated=all(each.is_full for each in rated),
        is_kept_inside=is_kept_inside,
    )


def _available(wanted: Wanted, look: Look) -> tuple[list[tuple[Backend, int]], bool]:
    """With weights, and whether others were left out because they are outside the house."""
    model, is_kept_inside = wanted.model, False
    found: list[tuple[Backend, int]] = []
    for index, name in enumerate(model.backends):
        backend = look.catalogue.backends.get(name)
        if backend is None or not look.states.get(name, UNKNOWN).is_available(look.now):
            continue
        if backend.is_external and not wanted.allows_external:
            is_kept_inside = True
            continue
        found.append((backend, model.weights[index] if model.weights else 1))
    return found, is_kept_inside


def _last_resort(wanted: Wanted, look: Look, is_kept_inside: bool) -> Candidates:
    """Those that answer their probes, though requests to them have failed of late: one bad prompt, sent again and
    again, must not take a model from everybody else."""
    found = tuple(
        backend
        for name in wanted.model.backends
        if (backend := look.catalogue.backends.get(name)) is not None
        and look.states.get(name, UNKNOWN).is_healthy
        and (wanted.allows_external or not backend.is_external)
    )
    return Candidates(found, reason=Reason.NO_OTHER, is_kept_inside=is_kept_inside)


def _rate(backend: Backend, weight: int, model: ModelRoute, look: Look) -> _Rated:
    state = look.states.get(backend.name, UNKNOWN)
    tier = state.tier(model.upstream_name, look.now) if model.parent is not None else None
    return _Rated(
        backend=backend,
        weight=weight,
        pressure=state.pressure(look.now),
        num_sent=state.num_sent,
        is_full=state.is_full(backend, look.now),
        tier_rank=_TIER_RANKS[tier],
    )


def _rank(rated: list[_Rated], wanted: Wanted) -> tuple[list[_Rated], Reason]:
    bound = LOAD_BOUND * (sum(each.pressure for each in rated) + 1) / sum(each.weight for each in rated)

    def is_busy(each: _Rated) -> bool:
        return each.is_full or each.pressure + 1 > math.ceil(bound * each.weight)

    def liking(each: _Rated) -> tuple[float, ...]:
        if wanted.affinity is not None:
            return each.tier_rank, -score(wanted.affinity.key, each.backend.name, each.weight)
        return each.tier_rank, each.pressure / each.weight, each.num_sent / each.weight

    ranked = sorted(rated, key=lambda each: (each.is_full, is_busy(each), *liking(each)))
    return ranked, _reason(ranked[0], min(rated, key=liking), rated, wanted)


def _reason(first: _Rated, liked: _Rated, rated: list[_Rated], wanted: Wanted) -> Reason:
    if len(rated) == 1:
        return Reason.ONLY
    has_holder = len({each.tier_rank for each in rated}) > 1
    if first is not liked and (wanted.affinity is not None or has_holder):
        return Reason.BOUNDED
    if has_holder and first.tier_rank < _TIER_RANKS[None]:
        return Reason.ADAPTER_ON_GPU if first.tier_rank == 0 else Reason.ADAPTER_ON_HOST
    if wanted.affinity is None:
        return Reason.LEAST_BUSY
    return Reason(wanted.affinity.kind.value)
