"""Holds the counters of budgets in Valkey against the ledger, and rebuilds them from it after Valkey lost its data.

The ledger is the truth. A counter that has less than the ledger lets somebody spend too much: it is corrected as soon
as that is sure. One that has more may only know of charges that are still in some gateway's spool: it is left alone,
shown by the metric, and corrected when an administrator asks for it. Corrections are differences, so they don't disturb
what is settled at the same time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

import msgspec
import structlog
from msgspec import Struct
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.catalogue.snapshot import Catalogue
from descant_gateway.limits.limit import Counted, Level, Limit, LimitKind, period_begin
from descant_gateway.limits.limiter import limits_script
from descant_gateway.limits.paths import path_of
from descant_gateway.store.spending import PERIODS, Spending, Spent, spending

if TYPE_CHECKING:
    from redis.asyncio import Redis

LOOK_INTERVAL_S: Final = 60.0
LOSS_INTERVAL_S: Final = 1.0
SURE_AFTER_S: Final = 2.0
"""A difference that is there twice, so long apart, is more than what is on its way."""
KNOWN: Final = "descant:counters-known"
"""A key that goes with the counters: without it, Valkey has lost them."""
_TURN: Final = "descant:reconciling"
_TURN_MS: Final = 60_000
_SECONDS_A_DAY: Final = 86_400

_log = structlog.get_logger(__name__)


class Drift(Struct, frozen=True):
    """A counter that differs from the ledger."""

    organization_id: UUID
    limit: Limit
    first_day: int
    """Of the period, since 1970."""
    difference: int
    """The ledger less the counter: tokens or micro-dollars."""


class Reconciler:
    """Runs in every gateway; a key in Valkey lets one at a time do the work."""

    def __init__(
        self,
        catalogue: Callable[[], Catalogue],
        engine: AsyncEngine,
        valkey: "Redis",
        *,
        look_s: float = LOOK_INTERVAL_S,
    ) -> None:
        self.drift: dict[Counted, int] = {Counted.TOKENS: 0, Counted.MONEY: 0}
        """What the last look found, over all counters, whichever way they differ."""
        self._catalogue = catalogue
        self._engine = engine
        self._valkey = valkey
        self._look_s = look_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="reconciler")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._valkey.aclose()

    async def look(self) -> None:
        """Measures the drift, and corrects the counters that have too little."""
        drifts = await sure_drifts(self._catalogue(), self._engine, self._valkey)
        for counted in self.drift:
            self.drift[counted] = sum(abs(drift.difference) for drift in drifts if drift.limit.counted is counted)
        missing = [drift for drift in drifts if drift.difference > 0]
        if missing:
            _log.warning("counters had less than the ledger: corrected", num_counters=len(missing))
        await correct(self._valkey, missing)

    async def rebuild_if_lost(self) -> None:
        if await self._valkey.exists(KNOWN):
            return
        # Looked at twice too: what gateways put off while Valkey was away is in the ledger, and booked a moment later.
        drifts = await sure_drifts(self._catalogue(), self._engine, self._valkey)
        missing = [drift for drift in drifts if drift.difference > 0]
        await correct(self._valkey, missing)
        await self._valkey.set(KNOWN, "1")
        if missing:
            _log.warning("valkey had lost its counters: rebuilt from the ledger", num_counters=len(missing))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        look_at = loop.time() + self._look_s
        while True:
            is_due = loop.time() >= look_at
            if is_due:
                look_at = loop.time() + self._look_s
            try:
                if is_due or not await self._valkey.exists(KNOWN):
                    await in_turn(self._valkey, self.look if is_due else self.rebuild_if_lost)
            except (RedisError, SQLAlchemyError, OSError, TimeoutError) as error:
                _log.debug("counters and ledger could not be compared; trying again", error=str(error))
            await asyncio.sleep(LOSS_INTERVAL_S)


async def rebuild(catalogue: Catalogue, engine: AsyncEngine, valkey: "Redis") -> list[Drift]:
    """Makes every counter of a budget what the ledger says, and tells which were not."""
    drifts = await sure_drifts(catalogue, engine, valkey)
    await correct(valkey, drifts)
    await valkey.set(KNOWN, "1")
    return drifts


async def in_turn(valkey: "Redis", work: Callable[[], Awaitable[object]]) -> bool:
    """False if another gateway is at it: a difference that two correct is corrected twice."""
    mine = uuid4().hex
    if not await valkey.set(_TURN, mine, nx=True, px=_TURN_MS):
        return False
    try:
        async with asyncio.timeout(_TURN_MS / 1000 - 5):
            await work()
    finally:
        if await valkey.get(_TURN) == mine.encode():
            await valkey.delete(_TURN)
    return True


async def sure_drifts(catalogue: Catalogue, engine: AsyncEngine, valkey: "Redis") -> list[Drift]:
    """What differs twice in the same direction: the smaller of both differences."""
    before = {(drift.limit, drift.first_day): drift for drift in await find_drifts(catalogue, engine, valkey)}
    if not before:
        return []
    await asyncio.sleep(SURE_AFTER_S)
    sure = []
    for drift in await find_drifts(catalogue, engine, valkey):
        earlier = before.get((drift.limit, drift.first_day))
        if earlier is not None and (earlier.difference > 0) == (drift.difference > 0):
            sure.append(min(earlier, drift, key=lambda each: abs(each.difference)))
    return sure


async def find_drifts(catalogue: Catalogue, engine: AsyncEngine, valkey: "Redis") -> list[Drift]:
    """Reads the ledger first: a charge that comes to both in between never seems to be missing from the counter."""
    budgets = list(budgets_of(catalogue))
    if not budgets:
        return []
    now = (await valkey.time())[0]
    begins = {period: period_begin(period, now) for period in PERIODS}
    async with engine.connect() as connection:
        spent = await spending(connection, {period: datetime.fromtimestamp(begins[period], UTC) for period in PERIODS})
    pipeline = valkey.pipeline(transaction=False)
    for organization_id, limit in budgets:
        pipeline.hmget(path_of(organization_id, (limit,)).counters[0], "first", "settled")
    drifts = []
    for (organization_id, limit), stored in zip(budgets, await pipeline.execute(), strict=True):
        first_day = int(begins[limit.period]) // _SECONDS_A_DAY
        settled = int(stored[1]) if stored[0] is not None and int(stored[0]) == first_day else 0
        difference = _in_ledger(spent, limit) - settled
        if difference:
            drifts.append(Drift(organization_id, limit, first_day, difference))
    return drifts


async def correct(valkey: "Redis", drifts: list[Drift]) -> None:
    """Adds each difference, unless its period has ended meanwhile."""
    script = valkey.register_script(limits_script())
    for drift in drifts:
        path = path_of(drift.organization_id, (drift.limit,))
        correction = msgspec.msgpack.encode([(drift.first_day, drift.difference)])
        keys = [f"{path.tag}:reservation:none", f"{path.tag}:leases", *path.counters]
        await script(keys=keys, args=["correct", 0, path.described, 0, 0, 0, correction])


def budgets_of(catalogue: Catalogue) -> Iterator[tuple[UUID, Limit]]:
    """Each with its organization. What is lost of the other limits comes back by itself."""
    owners = _owners(catalogue)
    for owner_id, rules in catalogue.limits.items():
        if owner_id not in owners:
            continue
        level, organization_id = owners[owner_id]
        for rule in rules:
            limit = Limit(level, LimitKind(rule.kind), owner_id.hex, rule.capacity, rule.model, rule.is_shadow)
            if limit.is_budget:
                yield organization_id, limit


def _owners(catalogue: Catalogue) -> dict[UUID, tuple[Level, UUID]]:
    """By id: its level and its organization."""
    teams = catalogue.teams
    owners = {team.id: (Level.TEAM, team.organization_id) for team in teams.values()}
    owners |= {team.organization_id: (Level.ORGANIZATION, team.organization_id) for team in teams.values()}
    for project in catalogue.projects.values():
        owners[project.id] = (Level.PROJECT, teams[project.team_id].organization_id)
    for key in catalogue.keys.values():
        if key.id in catalogue.limits:
            owners[key.id] = (Level.KEY, teams[key.team_id].organization_id)
    return owners


def _in_ledger(spent: Spending, limit: Limit) -> int:
    found = spent.get((UUID(limit.owner), limit.model, limit.period), Spent())
    return found.microdollars if limit.counted is Counted.MONEY else found.tokens
