"""GET /v1/limits: which limits lie on a key's path, what each has left, and which of them bind."""

from typing import Final

from litestar import Request, get
from litestar.datastructures import State
from litestar.params import FromQuery
from msgspec import Struct

from descant_gateway.identity.authenticate import Caller, permitted_model
from descant_gateway.limits.limit import Standing
from descant_gateway.limits.paths import limits_of, path_of
from descant_gateway.limits.script_queue import ValkeyAway
from descant_gateway.pipeline import Gateway
from descant_gateway.routes.access import LIMIT, OPT, Access, Rate
from descant_wire.errors import service_unavailable

_KEY_ONLY: Final = {OPT: Access.KEY, LIMIT: Rate(per_minute=1200)}


class LimitStanding(Struct, frozen=True, kw_only=True):
    """One limit of the key's path."""

    level: str
    """key, project, team or organization: whose it is."""
    kind: str
    model: str | None
    """Counts only what goes to it; null: everything together."""
    unit: str
    """requests, tokens or microdollars."""
    limit: int
    used: int
    """With what running requests have reserved. Above the limit it is a debt."""
    left: int
    resets_in_s: float
    """Until all of it is there again; 0 for requests at once."""
    mode: str
    """enforce, or shadow: counts and refuses nothing."""
    is_binding: bool
    """The first of its unit that will refuse, of those that count the same."""


class LimitReport(Struct, frozen=True, kw_only=True):
    key_id: str
    limits: list[LimitStanding]


@get("/v1/limits", opt=_KEY_ONLY)
async def show_limits(request: Request[object, object, State], model: FromQuery[str | None] = None) -> LimitReport:
    """`model`: only the limits that count it. 503 while Valkey is away."""
    gateway: Gateway = request.app.state.gateway
    caller: Caller = request.state.caller
    catalogue = gateway.feed.current
    if model is None:
        path = path_of(caller.team.organization_id, tuple(limits_of(caller, catalogue)))
    else:
        path = gateway.admission.paths.of(catalogue, caller, permitted_model(caller, model, catalogue))
    try:
        standings = await gateway.limiter.peek(path)
    except ValkeyAway:
        message = "The limits can't be read right now. Your key is fine; try again shortly."
        raise service_unavailable(message, retry_after_s=1, code="limits_unavailable") from None
    binding = binding_limits(standings)
    return LimitReport(key_id=caller.key.public_id, limits=[_shown(each, each in binding) for each in standings])


def binding_limits(standings: tuple[Standing, ...]) -> list[Standing]:
    """Of each unit, period and model the enforced one that has the least left."""
    tightest: dict[tuple[str, str, str | None], Standing] = {}
    for standing in standings:
        limit = standing.limit
        group = (limit.counted.value, limit.period.value, limit.model)
        if not limit.is_shadow and (group not in tightest or standing.left < tightest[group].left):
            tightest[group] = standing
    return list(tightest.values())


def _shown(standing: Standing, is_binding: bool) -> LimitStanding:
    limit = standing.limit
    return LimitStanding(
        level=limit.level.value,
        kind=limit.kind.value,
        model=limit.model,
        unit=limit.counted.value,
        limit=limit.capacity,
        used=standing.used,
        left=standing.remaining,
        resets_in_s=round(standing.reset_s, 3),
        mode="shadow" if limit.is_shadow else "enforce",
        is_binding=is_binding,
    )
