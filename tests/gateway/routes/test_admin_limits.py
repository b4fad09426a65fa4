"""Limits, prices, webhooks and fair shares over the admin API, from the request to the catalogue that gateways read."""

import time
from collections.abc import AsyncIterator
from typing import cast
from uuid import UUID, uuid4

import httpx
import pytest
from litestar import Litestar
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.admin_under_test import ADMIN_KEY, PEPPER, Json, admin_app, client_of

from descant_gateway.catalogue.snapshot import Catalogue, LimitRule, Price
from descant_gateway.sealing import Sealer
from descant_gateway.store import catalogue


@pytest.fixture
def app(engine: AsyncEngine) -> Litestar:
    return admin_app(engine)


@pytest.fixture
async def client(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app, ADMIN_KEY) as client:
        yield client


async def sent(client: httpx.AsyncClient, method: str, path: str, body: Json | None = None) -> Json:
    reply = await client.request(method, path, json=body)
    assert reply.is_success, reply.text
    return cast("Json", reply.json()) if reply.content else {}


async def refused(client: httpx.AsyncClient, method: str, path: str, body: Json, headers: Json | None = None) -> Json:
    reply = await client.request(method, path, json=body, headers=headers)
    return {"status": reply.status_code} | reply.json()["error"]


@pytest.fixture
async def team(client: httpx.AsyncClient) -> Json:
    await sent(client, "PUT", "/backends", {"name": "engine", "base_url": "http://engine:8000"})
    await sent(client, "PUT", "/models", {"name": "base", "backends": ["engine"]})
    await sent(client, "PUT", "/models", {"name": "adapter", "parent": "base", "backends": []})
    await sent(client, "PUT", "/models", {"name": "alias", "alias_of": "base"})
    return await sent(client, "POST", "/teams", {"name": "payments"})


async def loaded(engine: AsyncEngine) -> Catalogue:
    return await catalogue.load(engine, Sealer(PEPPER))


def price_of(found: Catalogue, model: str) -> Price:
    price = found.price_of(found.models[model], time.time())
    return Price(price.input, price.cached, price.output)


def limit_of(team: Json, **fields: object) -> Json:
    return {"level": "team", "owner_id": team["id"], "kind": "money_per_day", "capacity": 5_000_000} | fields


async def test_a_limit_is_set_changed_and_removed(client: httpx.AsyncClient, engine: AsyncEngine, team: Json) -> None:
    owner = UUID(team["id"])
    await sent(client, "PUT", "/limits", limit_of(team))
    for_adapter = limit_of(team, model="adapter", is_shadow=True, warn_at=[95, 50, 80])
    made = await sent(client, "PUT", "/limits", for_adapter)
    await sent(client, "PUT", "/limits", limit_of(team, capacity=7))
    rules = (await loaded(engine)).limits[owner]
    assert set(rules) == {
        LimitRule(kind="money_per_day", capacity=7),
        LimitRule(kind="money_per_day", capacity=5_000_000, model="adapter", is_shadow=True, warn_at=(50, 80, 95)),
    }
    await sent(client, "DELETE", f"/limits/{made['id']}")
    assert len((await loaded(engine)).limits[owner]) == 1
    listed = await sent(client, "GET", f"/limits?level=team&owner_id={owner}")
    assert [row["capacity"] for row in listed["data"]] == [7]


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "requests_per_hour"},
        {"level": "planet"},
        {"capacity": -1},
        {"capacity": 10**16},
        {"model": "unknown"},
        {"warn_at": [0]},
        {"warn_at": [101]},
        {"surprise": 1},
    ],
)
async def test_a_limit_that_makes_no_sense_is_refused(client: httpx.AsyncClient, team: Json, fields: Json) -> None:
    assert (await refused(client, "PUT", "/limits", limit_of(team, **fields)))["status"] == 400


async def test_a_limit_needs_its_owner(client: httpx.AsyncClient, team: Json) -> None:
    for level in ("organization", "team", "project", "key"):
        error = await refused(client, "PUT", "/limits", limit_of(team, level=level, owner_id=str(uuid4())))
        assert error["status"] == 404
        assert level in error["message"]


async def signed_in(client: httpx.AsyncClient, team: Json, role: str) -> dict[str, str]:
    """The headers of a person with this role in the team."""
    password = "correct horse battery"
    person = {"email": f"{role}@example.com", "name": role, "password": password}
    place = {"team_id": team["id"], "role": role}
    await sent(client, "POST", f"/people/{(await sent(client, 'POST', '/people', person))['id']}/memberships", place)
    session = await sent(client, "POST", "/sign-in/password", {"email": person["email"], "password": password})
    return {"Authorization": f"Bearer {session['token']}"}


async def test_nobody_raises_their_own_limit(client: httpx.AsyncClient, team: Json) -> None:
    """An admin of the team sets those of its keys, and not the team's own; a member sets none, a key none of keys."""
    by_admin, by_member = [await signed_in(client, team, role) for role in ("admin", "member")]
    made = {"team_id": team["id"], "name": "account", "role": "admin", "scopes": ["admin"]}
    account = await sent(client, "POST", "/keys", made)
    own = limit_of(team, level="key", owner_id=account["id"])
    assert (await client.put("/limits", json=own, headers=by_admin)).status_code == 200
    assert (await refused(client, "PUT", "/limits", limit_of(team), by_admin))["status"] == 403
    assert (await refused(client, "PUT", "/limits", own, by_member))["status"] == 403
    by_account = {"Authorization": f"Bearer {account['api_key']}"}
    assert (await refused(client, "PUT", "/limits", own, by_account))["status"] == 403


async def test_prices_hold_for_adapters_and_aliases_of_their_model(
    client: httpx.AsyncClient, engine: AsyncEngine, team: Json
) -> None:
    await sent(client, "PUT", "/prices", {"model": "base", "input": 300, "output": 900})
    found = await loaded(engine)
    expected = Price(300, 300, 900)
    assert [price_of(found, name) for name in ("base", "adapter", "alias")] == [expected] * 3
    await sent(client, "PUT", "/prices", {"model": "adapter", "input": 400, "cached": 40, "output": 1000})
    found = await loaded(engine)
    assert price_of(found, "adapter") == Price(400, 40, 1000)
    await sent(client, "DELETE", "/prices/adapter")
    assert len((await sent(client, "GET", "/prices"))["data"]) == 1
    assert (await refused(client, "PUT", "/prices", {"model": "no", "input": 1, "output": 1}))["status"] == 400


INTERNAL = (
    "http://127.0.0.1:8080/admin",
    "http://10.0.0.7/",
    "http://[::1]/",
    "http://[::ffff:192.168.0.1]/",
    "http://2130706433/",
)


async def test_a_webhook_s_secret_is_shown_once_and_sealed(
    client: httpx.AsyncClient, engine: AsyncEngine, team: Json
) -> None:
    organization = next(iter((await loaded(engine)).organizations))
    made = await sent(client, "PUT", f"/webhooks/{organization}", {"url": "https://hooks.example.com/descant/v1"})
    found = (await loaded(engine)).webhooks[organization]
    assert (found.url, found.secret) == (made["url"], made["secret"])
    async with engine.connect() as connection:
        stored = (await connection.exec_driver_sql("SELECT sealed_secret FROM webhooks")).scalar_one()
    assert made["secret"].encode() not in stored
    for url in (
        "http://169.254.169.254/latest",
        "http://0xa9fea9fe/",
        "file:///etc/passwd",
        "http://u:p@host/",
        *INTERNAL,
    ):
        assert (await refused(client, "PUT", f"/webhooks/{organization}", {"url": url}))["status"] == 400
    await sent(client, "DELETE", f"/webhooks/{organization}")
    assert (await loaded(engine)).webhooks == {}


async def test_fair_shares_and_capacities_reach_the_catalogue(
    client: httpx.AsyncClient, engine: AsyncEngine, team: Json
) -> None:
    await sent(client, "PUT", f"/fair-shares/{team['id']}", {"priority": 2, "weight": 3})
    await sent(client, "PUT", "/capacities", {"backend": "engine", "max_in_flight": 16})
    found = await loaded(engine)
    assert (found.teams[UUID(team["id"])].priority, found.teams[UUID(team["id"])].weight) == (2, 3)
    assert found.backends["engine"].max_in_flight == 16
    assert (await refused(client, "PUT", "/capacities", {"backend": "no", "max_in_flight": 1}))["status"] == 404
