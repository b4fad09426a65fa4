"""Counters and ledger agree to the micro-dollar, and come to agree again after Valkey has lost its data."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis.asyncio
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.usage_records import usage_record

from descant_gateway.catalogue.snapshot import Catalogue, Key, LimitRule, ModelRoute, Organization, Price, Project, Team
from descant_gateway.ledger import reconcile
from descant_gateway.ledger.reconcile import Drift, Reconciler, budgets_of, find_drifts
from descant_gateway.limits.limit import Amounts, Counted
from descant_gateway.limits.limiter import Limiter, Reservation, limits_script
from descant_gateway.limits.paths import path_of
from descant_gateway.limits.script_queue import ScriptQueue, connect
from descant_gateway.store import ledger
from descant_gateway.usage.record import UsageRecord

ORGANIZATION, TEAM, PROJECT, KEY = (uuid4() for _ in range(4))
PRICE = Price(1_234_567, 123_456, 7_654_321)
BASE = ModelRoute(name="base", upstream_name="base", backends=())
ADAPTER = ModelRoute(name="adapter", upstream_name="adapter", parent="base", backends=())
ALIAS = ModelRoute(name="alias", upstream_name="adapter", target="adapter", parent="base", backends=())
MODELS = (BASE, ADAPTER, ALIAS)


def rules(*models: str | None) -> tuple[LimitRule, ...]:
    kinds = ("tokens_per_day", "money_per_day", "money_per_week", "money_per_month")
    return tuple(LimitRule(kind=kind, capacity=10**12, model=model) for kind in kinds for model in models)


CATALOGUE = Catalogue(
    version=1,
    organizations={ORGANIZATION: Organization(id=ORGANIZATION, name="o")},
    teams={TEAM: Team(id=TEAM, organization_id=ORGANIZATION, name="t")},
    projects={PROJECT: Project(id=PROJECT, team_id=TEAM, name="p")},
    keys={"k": Key(id=KEY, public_id="k", team_id=TEAM, name="k", secret_hmacs=(), project_id=PROJECT)},
    limits={
        ORGANIZATION: rules(None),
        TEAM: (*rules(None, "base"), LimitRule(kind="requests_per_minute", capacity=10**6)),
        PROJECT: rules("adapter"),
        KEY: rules(None, "alias"),
    },
)


@pytest.fixture
async def valkey(valkey_url: str) -> AsyncIterator["redis.asyncio.Redis"]:
    client = connect(valkey_url)
    yield client
    await client.aclose()


@pytest.fixture
async def limiter(valkey_url: str) -> AsyncIterator[Limiter]:
    queue = ScriptQueue(connect(valkey_url), limits_script(), 2.0)
    queue.start()
    yield Limiter(queue)
    await queue.close()


@pytest.fixture(autouse=True)
def soon_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "SURE_AFTER_S", 0.05)


async def served(limiter: Limiter, model: ModelRoute, random: Random, **fields: Any) -> UsageRecord:
    """A charge as `admit` and `settle` make it, in the counters; its record is for the ledger."""
    names = (model.name, model.parent, model.target)
    limits = tuple(limit for _, limit in budgets_of(CATALOGUE) if limit.model is None or limit.model in names)
    reservation = Reservation(uuid4(), path_of(ORGANIZATION, limits), Amounts(1, 5000, 10**6))
    decision = await limiter.reserve(reservation)
    assert decision.is_granted
    prompt, cached, completion = random.randrange(5000), random.randrange(5000), random.randrange(999)
    cost = PRICE.cost(prompt, cached, completion)
    limiter.settle(reservation, Amounts(1, prompt + completion, cost))
    await limiter.drain(5)
    return usage_record(
        charge_id=reservation.charge_id,
        created_at=datetime.fromtimestamp(decision.now, UTC),
        organization_id=ORGANIZATION,
        team_id=TEAM,
        key_id=KEY,
        project_id=PROJECT,
        model=model.name,
        parent=model.parent,
        alias_of=model.target,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
        cost_microdollars=cost,
    )


async def book(engine: AsyncEngine, records: list[UsageRecord]) -> None:
    async with engine.begin() as connection:
        await ledger.insert_records(connection, records)


async def drifts(engine: AsyncEngine, valkey: "redis.asyncio.Redis") -> list[Drift]:
    return await find_drifts(CATALOGUE, engine, valkey)


async def test_counters_and_ledger_agree_at_every_level_for_every_model(
    engine: AsyncEngine, valkey: "redis.asyncio.Redis", limiter: Limiter
) -> None:
    random = Random(3)
    records = [await served(limiter, random.choice(MODELS), random) for _ in range(60)]
    assert len(await drifts(engine, valkey)) == 6 * 4, "nothing is in the ledger yet"
    await book(engine, records)
    assert await drifts(engine, valkey) == []


async def test_a_valkey_that_lost_its_data_gets_it_back_from_the_ledger(
    engine: AsyncEngine, valkey: "redis.asyncio.Redis", limiter: Limiter
) -> None:
    random = Random(5)
    records = [await served(limiter, random.choice(MODELS), random) for _ in range(20)]
    await book(engine, records)
    reconciler = Reconciler(lambda: CATALOGUE, engine, valkey)
    await reconciler.rebuild_if_lost()
    await valkey.flushall()
    after = [await served(limiter, random.choice(MODELS), random) for _ in range(5)]
    assert await drifts(engine, valkey)
    await book(engine, after)
    await reconciler.rebuild_if_lost()
    assert await drifts(engine, valkey) == []
    await reconciler.rebuild_if_lost()
    assert await drifts(engine, valkey) == []


async def test_too_little_is_corrected_and_too_much_only_shown(
    engine: AsyncEngine, valkey: "redis.asyncio.Redis", limiter: Limiter
) -> None:
    reconciler, random = Reconciler(lambda: CATALOGUE, engine, valkey), Random(9)
    unbooked = await served(limiter, BASE, random)
    await reconciler.look()
    tokens = unbooked.prompt_tokens + unbooked.completion_tokens
    assert reconciler.drift == {Counted.TOKENS: 4 * tokens, Counted.MONEY: 12 * unbooked.cost_microdollars}
    assert all(drift.difference < 0 for drift in await drifts(engine, valkey)), "it may be in somebody's spool"
    await book(engine, [unbooked])
    await reconciler.look()
    assert reconciler.drift == {Counted.TOKENS: 0, Counted.MONEY: 0}

    lost = await served(limiter, ALIAS, random)
    await valkey.flushall()
    await book(engine, [lost])
    await reconciler.look()
    assert reconciler.drift[Counted.MONEY] > 0
    assert await drifts(engine, valkey) == []


async def test_what_was_put_off_through_the_outage_is_not_counted_twice(
    engine: AsyncEngine, valkey: "redis.asyncio.Redis", limiter: Limiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL was there all the time: the ledger has the charge before the counters do."""
    monkeypatch.setattr(reconcile, "SURE_AFTER_S", 0.5)
    charge = await served(limiter, BASE, Random(1))
    await book(engine, [charge])
    await valkey.flushdb()
    rebuilt = asyncio.create_task(Reconciler(lambda: CATALOGUE, engine, valkey).rebuild_if_lost())
    await asyncio.sleep(0.1)
    limits = tuple(limit for _, limit in budgets_of(CATALOGUE) if limit.model in (None, BASE.name))
    used = Amounts(1, charge.prompt_tokens + charge.completion_tokens, charge.cost_microdollars)
    limiter.book(Reservation(uuid4(), path_of(ORGANIZATION, limits), used), used)
    await rebuilt
    assert await find_drifts(CATALOGUE, engine, valkey) == []


async def test_an_administrator_s_rebuild_goes_both_ways(
    engine: AsyncEngine, valkey: "redis.asyncio.Redis", limiter: Limiter
) -> None:
    await served(limiter, ADAPTER, Random(1))
    corrected = await reconcile.rebuild(CATALOGUE, engine, valkey)
    assert corrected
    assert all(drift.difference < 0 for drift in corrected)
    assert await drifts(engine, valkey) == []


async def test_only_one_gateway_corrects_at_a_time(valkey: "redis.asyncio.Redis") -> None:
    async def second() -> None:
        assert not await reconcile.in_turn(valkey, second)

    assert await reconcile.in_turn(valkey, second)
    assert await reconcile.in_turn(valkey, second), "the turn is given back"


def test_a_budget_whose_owner_is_gone_is_passed_over() -> None:
    orphaned = Catalogue(version=1, limits={UUID(int=9): rules(None)})
    assert list(budgets_of(orphaned)) == []
