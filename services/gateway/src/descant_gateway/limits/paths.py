"""Which limits lie on a request's path: those of its key, project, team and organization that count its model."""

from collections.abc import Iterator
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct

from descant_gateway.catalogue.snapshot import Catalogue, LimitRule, ModelRoute, RateLimits
from descant_gateway.identity.authenticate import Caller
from descant_gateway.limits.limit import Amounts, Counted, Level, Limit, LimitKind, Period

_NO_LIMITS: Final = RateLimits()
_MAX_REMEMBERED: Final = 20_000
_AMOUNT_INDEX: Final = {Counted.REQUESTS: 1, Counted.TOKENS: 2, Counted.MONEY: 3}
"""As `limits.lua` numbers them."""


class LimitPath(Struct, frozen=True):
    """The limits of one key for one model, and what the script is told of them."""

    organization_id: UUID
    tag: str
    """Begins every key of the organization in Valkey: one hash slot for all of them."""
    limits: tuple[Limit, ...]
    counters: tuple[str, ...]
    """The counters' names in Valkey, one for each limit."""
    described: bytes
    """ARGV[3] of `limits.lua`."""
    needs_lease: bool
    """What a request holds of some limit comes back only if it is given back."""
    bounds: tuple[tuple[int, int], ...]
    """Of each limit: which of a request's amounts it counts, and the most that one request may take of it."""
    shown: tuple[int, ...]
    """Positions of the limits that x-ratelimit-* may tell of."""
    num_warnings: int
    """Limits that have warning thresholds."""
    num_shadows: int

    def too_small(self, amounts: Amounts) -> Limit | None:
        """The first limit that could never hold so much, however long one waits."""
        values = (amounts.requests, amounts.tokens, amounts.microdollars)
        for position, (which, most) in enumerate(self.bounds):
            if values[which] > most:
                return self.limits[position]
        return None


class LimitPaths:
    """Paths made once for each key and model, and forgotten when the catalogue changes."""

    def __init__(self) -> None:
        self._catalogue: Catalogue | None = None
        self._paths: dict[tuple[UUID, str], LimitPath] = {}

    def of(self, catalogue: Catalogue, caller: Caller, model: ModelRoute) -> LimitPath:
        if catalogue is not self._catalogue or len(self._paths) > _MAX_REMEMBERED:
            self._catalogue, self._paths = catalogue, {}
        name = (caller.key.id, model.name)
        path = self._paths.get(name)
        if path is None:
            limits = tuple(limit for limit in limits_of(caller, catalogue) if _counts(limit, model))
            path = self._paths[name] = path_of(caller.team.organization_id, limits)
        return path


def limits_of(caller: Caller, catalogue: Catalogue) -> Iterator[Limit]:
    """Every limit of the caller's levels, for whatever model, from the key up. All of them must pass."""
    key, team = caller.key, caller.team
    yield from _level(Level.KEY, key.id, catalogue, key.limits)
    if key.project_id is not None:
        yield from _level(Level.PROJECT, key.project_id, catalogue)
    yield from _level(Level.TEAM, team.id, catalogue, team.limits)
    yield from _level(Level.ORGANIZATION, team.organization_id, catalogue)


def path_of(organization_id: UUID, limits: tuple[Limit, ...]) -> LimitPath:
    described = [
        (limit.period.value, limit.capacity, _AMOUNT_INDEX[limit.counted], limit.is_shadow) for limit in limits
    ]
    tag = tag_of(organization_id)
    return LimitPath(
        organization_id=organization_id,
        tag=tag,
        limits=limits,
        counters=tuple(f"{tag}:{limit.counter}" for limit in limits),
        described=msgspec.msgpack.encode(described),
        bounds=tuple((_AMOUNT_INDEX[limit.counted] - 1, _most(limit)) for limit in limits),
        shown=tuple(position for position, limit in enumerate(limits) if limit.is_shown),
        needs_lease=any(limit.period is not Period.MINUTE for limit in limits),
        num_warnings=sum(bool(limit.warn_at) for limit in limits),
        num_shadows=sum(limit.is_shadow for limit in limits),
    )


def _most(limit: Limit) -> int:
    """Nothing is too large for a limit that only counts; nothing fits one that lets nothing through."""
    if limit.is_shadow:
        return 2**62
    return limit.capacity if limit.capacity >= 1 else -1


def tag_of(organization_id: UUID) -> str:
    return f"descant:{{{organization_id.hex}}}"


def _level(level: Level, owner_id: UUID, catalogue: Catalogue, shorthand: RateLimits = _NO_LIMITS) -> Iterator[Limit]:
    rules = catalogue.limits.get(owner_id, ())
    for rule in (*rules, *_rules_of(shorthand, rules)):
        yield Limit(
            level=level,
            kind=LimitKind(rule.kind),
            owner=owner_id.hex,
            capacity=rule.capacity,
            model=rule.model,
            is_shadow=rule.is_shadow,
            warn_at=rule.warn_at,
        )


def _rules_of(shorthand: RateLimits, rules: tuple[LimitRule, ...]) -> Iterator[LimitRule]:
    """The two limits that keys and teams have as fields, unless a rule of the same kind takes their place."""
    taken = {rule.kind for rule in rules if rule.model is None}
    for kind in (LimitKind.REQUESTS_PER_MINUTE, LimitKind.TOKENS_PER_MINUTE):
        capacity = getattr(shorthand, kind)
        if capacity is not None and kind not in taken:
            yield LimitRule(kind=kind, capacity=capacity)


def _counts(limit: Limit, model: ModelRoute) -> bool:
    """An alias counts as what it stands for, an adapter for itself and for its base model."""
    return limit.model is None or limit.model in (model.name, model.parent, model.target)
