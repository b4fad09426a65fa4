"""The admin API over HTTP messages, on a real PostgreSQL."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import cast
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from litestar import Litestar
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.admin_under_test import ADMIN_KEY, PEPPER, Json, admin_app, client_of
from tests.gateway.usage_records import usage_record

from descant_gateway.config import Secret
from descant_gateway.identity import keys
from descant_gateway.identity.authenticate import valid_hmacs
from descant_gateway.routes.access import OPT, Access, walk
from descant_gateway.sealing import Sealer
from descant_gateway.store import catalogue, ledger
from descant_gateway.store.session import create_engine
from descant_gateway.usage.record import UsageRecord


@pytest.fixture
def app(engine: AsyncEngine) -> Litestar:
    return admin_app(engine)


@pytest.fixture
async def client(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app, ADMIN_KEY) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(shared_postgres_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """What is refused changes nothing: all of it needs one application and database only."""
    engine = create_engine(Secret(shared_postgres_url))
    async with client_of(admin_app(engine), ADMIN_KEY) as client:
        yield client
    await engine.dispose()


SHARED = pytest.mark.asyncio(loop_scope="module")
"""For the tests of `refusing`."""


async def ok(reply: httpx.Response) -> Json:
    assert reply.is_success, reply.text
    return cast("Json", reply.json())


def error_of(reply: httpx.Response, status: int) -> Json:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return cast("Json", error)


async def make_team(client: httpx.AsyncClient, name: str = "payments", **fields: object) -> Json:
    return await ok(await client.post("/teams", json={"name": name, **fields}))


async def make_models(client: httpx.AsyncClient, *names: str) -> None:
    await ok(await client.put("/backends", json={"name": "engine", "base_url": "http://engine:8000"}))
    for name in names:
        await ok(await client.put("/models", json={"name": name, "backends": ["engine"]}))


class TestAccess:
    @pytest.mark.parametrize(
        "authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {ADMIN_KEY}", f"Bearer {ADMIN_KEY}x", "Bearer ü"]
    )
    async def test_every_route_is_closed_without_the_admin_key(self, app: Litestar, authorization: str | None) -> None:
        headers = {} if authorization is None else {"Authorization": authorization.encode()}
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
            for path, methods, handler in walk(app.routes):
                if handler.opt[OPT] is Access.PUBLIC:
                    continue
                for method in methods:
                    reply = await client.request(
                        method, re.sub(r"\{\w+_id\}", str(uuid4()), path).replace("{version}", "7")
                    )
                    assert error_of(reply, 401)["code"] == "invalid_api_key", path


class TestTeams:
    async def test_create_show_list(self, client: httpx.AsyncClient) -> None:
        team = await make_team(client, requests_per_minute=60, tokens_per_minute=10_000)
        assert team["organization"] == "default"
        assert team["allowed_models"] is None
        assert await ok(await client.get(f"/teams/{team['id']}")) == team
        assert (await ok(await client.get("/teams", params={"name": "payments"})))["data"] == [team]
        assert (await ok(await client.get("/teams", params={"name": "nobody"})))["data"] == []

    async def test_patch_changes_what_is_given_and_null_lifts(self, client: httpx.AsyncClient) -> None:
        team = await make_team(client, requests_per_minute=60, tokens_per_minute=10_000)
        patched = await ok(await client.patch(f"/teams/{team['id']}", json={"requests_per_minute": None}))
        assert patched == {**team, "requests_per_minute": None}
        assert await ok(await client.patch(f"/teams/{team['id']}", json={})) == patched

    async def test_names_are_unique_in_an_organization(self, client: httpx.AsyncClient) -> None:
        await make_team(client)
        assert error_of(await client.post("/teams", json={"name": "payments"}), 409)["code"] == "already_exists"
        await ok(await client.post("/organizations", json={"name": "subsidiary"}))
        await make_team(client, organization="subsidiary")
        assert len((await ok(await client.get("/teams", params={"name": "payments"})))["data"]) == 2

    async def test_unknown_organization_team_and_model(self, client: httpx.AsyncClient) -> None:
        assert (
            "acme" in error_of(await client.post("/teams", json={"name": "x", "organization": "acme"}), 404)["message"]
        )
        error_of(await client.get(f"/teams/{uuid4()}"), 404)
        error_of(await client.patch(f"/teams/{uuid4()}", json={"requests_per_minute": 1}), 404)
        error = error_of(await client.post("/teams", json={"name": "x", "allowed_models": ["gpt-9"]}), 400)
        assert error["param"] == "allowed_models"
        assert "gpt-9" in error["message"]

    async def test_pages_hold_every_row_once(self, client: httpx.AsyncClient) -> None:
        made = [(await make_team(client, f"team {number}"))["name"] for number in range(7)]
        seen, after = [], None
        for _ in range(4):
            page = await ok(await client.get("/teams", params={"limit": 2, **({"after": after} if after else {})}))
            seen += [team["name"] for team in page["data"]]
            after = page["next"]
        assert seen == made
        assert after is None

    @SHARED
    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "name"),
            ({"name": 1}, "name"),
            ({"name": ""}, "name"),
            ({"name": "a\u0000b"}, "name"),
            ({"name": "x" * 201}, "name"),
            ({"name": "x", "requests_per_minute": 0}, "requests_per_minute"),
            ({"name": "x", "requests_per_minute": -5}, "requests_per_minute"),
            ({"name": "x", "requests_per_minute": 10**30}, "requests_per_minute"),
            ({"name": "x", "tokens_per_minute": 1.5}, "tokens_per_minute"),
            ({"name": "x", "tokens_per_minute": True}, "tokens_per_minute"),
            ({"name": "x", "allowed_models": "all"}, "allowed_models"),
            ({"name": "x", "rpm": 5}, "rpm"),
        ],
    )
    async def test_a_wrong_field_is_named(self, refusing: httpx.AsyncClient, body: Json, param: str) -> None:
        error = error_of(await refusing.post("/teams", json=body), 400)
        assert error["param"] == param

    @SHARED
    @pytest.mark.parametrize(
        "body", [b"", b"[", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"name":"\\ud800"}', b"[" * 5000]
    )
    async def test_what_is_no_object_is_refused(self, refusing: httpx.AsyncClient, body: bytes) -> None:
        error_of(await refusing.post("/teams", content=body, headers={"Content-Type": "application/json"}), 400)

    @SHARED
    @pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "after=zz", "after=%00"])
    async def test_a_wrong_query_is_named(self, refusing: httpx.AsyncClient, query: str) -> None:
        assert error_of(await refusing.get(f"/teams?{query}"), 400)["param"] == query.partition("=")[0]


class TestKeys:
    async def test_a_key_is_shown_once_and_its_hmac_stored(
        self, client: httpx.AsyncClient, engine: AsyncEngine
    ) -> None:
        team = await make_team(client)
        created = await ok(await client.post("/keys", json={"team_id": team["id"], "name": "ci"}))
        parsed = keys.parse(created.pop("api_key"))
        assert parsed.public_id == created["public_id"]
        stored = (await catalogue.load(engine, Sealer(PEPPER))).keys[parsed.public_id]
        assert keys.secret_matches(PEPPER.reveal(), parsed.secret, stored.secret_hmacs)
        for shown in (
            await client.get(f"/keys/{created['id']}"),
            await client.get(f"/keys/{created['public_id']}"),
            await client.get("/keys", params={"team_id": team["id"]}),
        ):
            assert parsed.secret not in shown.text
        assert await ok(shown) == {"data": [created], "next": None}

    async def test_a_key_only_narrows_its_teams_models(self, client: httpx.AsyncClient) -> None:
        await make_models(client, "small", "large", "huge")
        team = await make_team(client, allowed_models=["small", "large"])
        body = {"team_id": team["id"], "name": "ci"}
        narrowed = await ok(await client.post("/keys", json={**body, "allowed_models": ["small"]}))
        assert narrowed["allowed_models"] == ["small"]
        error = error_of(await client.post("/keys", json={**body, "allowed_models": ["small", "huge"]}), 400)
        assert error["param"] == "allowed_models"
        assert "huge" in error["message"]
        assert "small" not in error["message"].partition("may not use")[2]

    async def test_revoking_is_for_good(self, client: httpx.AsyncClient) -> None:
        team = await make_team(client)
        created = await ok(await client.post("/keys", json={"team_id": team["id"], "name": "ci"}))
        revoked = await ok(await client.post(f"/keys/{created['public_id']}/revoke"))
        assert revoked["revoked_at"] is not None
        assert await ok(await client.post(f"/keys/{created['id']}/revoke")) == revoked
        assert error_of(await client.post(f"/keys/{created['id']}/rotate", json={}), 400)["param"] == "key"

    async def test_rotation_leaves_both_secrets_valid_for_the_grace(
        self, client: httpx.AsyncClient, engine: AsyncEngine
    ) -> None:
        team = await make_team(client)
        first = await ok(await client.post("/keys", json={"team_id": team["id"], "name": "ci"}))
        second = await ok(await client.post(f"/keys/{first['id']}/rotate", json={"grace_s": 600}))
        assert second["public_id"] == first["public_id"]

        async def valid() -> tuple[bytes, ...]:
            key = (await catalogue.load(engine, Sealer(PEPPER))).keys[first["public_id"]]
            return valid_hmacs(key.secret_hmacs, key.ending_secrets)

        for issued in (first, second):
            assert keys.secret_matches(PEPPER.reveal(), keys.parse(issued["api_key"]).secret, await valid())
        third = await ok(await client.post(f"/keys/{first['id']}/rotate", json={"grace_s": 0}))
        assert await valid() == (keys.hmac_secret(PEPPER.reveal(), keys.parse(third["api_key"]).secret),)

    @SHARED
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"ip_ranges": ["10.0.0.0/8", "nonsense"]}, "ip_ranges"),
            ({"ip_ranges": ["10.0.0.1/8"]}, "ip_ranges"),
            ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
            ({"expires_at": "2030-01-01T00:00:00"}, "expires_at"),
            ({"team_id": "payments"}, "team_id"),
        ],
    )
    async def test_a_wrong_field_is_named(self, refusing: httpx.AsyncClient, fields: Json, param: str) -> None:
        team = await make_team(refusing, f"team of {sorted(fields.items())}")
        reply = await refusing.post("/keys", json={"team_id": team["id"], "name": "ci", **fields})
        assert error_of(reply, 400)["param"] == param

    async def test_limits_ranges_and_expiry_reach_the_catalogue(
        self, client: httpx.AsyncClient, engine: AsyncEngine
    ) -> None:
        team = await make_team(client, tokens_per_minute=7)
        expires_at = datetime.now(UTC) + timedelta(days=1)
        fields = {"requests_per_minute": 5, "ip_ranges": ["10.0.0.0/8", "::1"], "expires_at": expires_at.isoformat()}
        created = await ok(await client.post("/keys", json={"team_id": team["id"], "name": "ci", **fields}))
        loaded = await catalogue.load(engine, Sealer(PEPPER))
        key = loaded.keys[created["public_id"]]
        assert (key.limits.requests_per_minute, key.limits.tokens_per_minute) == (5, None)
        assert [str(network) for network in key.ip_ranges] == ["10.0.0.0/8", "::1/128"]
        assert key.expires_at == expires_at
        assert loaded.teams[UUID(team["id"])].limits.tokens_per_minute == 7

    async def test_unknown_team_and_key(self, client: httpx.AsyncClient) -> None:
        error_of(await client.post("/keys", json={"team_id": str(uuid4()), "name": "ci"}), 404)
        for path in ("/keys/nobody", f"/keys/{uuid4()}"):
            error_of(await client.get(path), 404)
            error_of(await client.post(f"{path}/revoke"), 404)
            error_of(await client.post(f"{path}/rotate", json={}), 404)


class TestModelsAndBackends:
    async def test_base_adapter_and_alias_become_routes(self, client: httpx.AsyncClient, engine: AsyncEngine) -> None:
        for name in ("one", "two"):
            await ok(await client.put("/backends", json={"name": name, "base_url": f"http://{name}:8000/v1/"}))
        base = {"name": "org/base", "upstream_name": "Base-7B", "backends": ["two", "one"], "max_output_tokens": 99}
        await ok(await client.put("/models", json=base))
        await ok(await client.put("/models", json={"name": "tickets", "parent": "org/base"}))
        await ok(await client.put("/models", json={"name": "sql", "parent": "org/base", "backends": ["one"]}))
        await ok(await client.put("/models", json={"name": "default", "alias_of": "tickets"}))
        loaded = await catalogue.load(engine, Sealer(PEPPER))
        assert loaded.backends["one"].base_url == "http://one:8000"
        assert (loaded.models["org/base"].upstream_name, loaded.models["org/base"].backends) == (
            "Base-7B",
            ("two", "one"),
        )
        assert loaded.models["tickets"].backends == ("two", "one")
        assert loaded.models["sql"].backends == ("one",)
        alias = loaded.models["default"]
        assert (alias.name, alias.upstream_name, alias.parent) == ("default", "tickets", "org/base")
        assert (alias.backends, alias.max_output_tokens) == (("two", "one"), 4096)

    async def test_what_is_in_use_stays(self, client: httpx.AsyncClient) -> None:
        await make_models(client, "org/base")
        await ok(await client.put("/models", json={"name": "tickets", "parent": "org/base"}))
        await ok(await client.put("/models", json={"name": "default", "alias_of": "tickets"}))
        assert "org/base" in error_of(await client.delete("/backends/engine"), 409)["message"]
        assert "tickets" in error_of(await client.delete("/models/org/base"), 409)["message"]
        error_of(await client.put("/models", json={"name": "org/base", "alias_of": "tickets"}), 409)
        for path in ("/models/default", "/models/tickets", "/models/org/base", "/backends/engine"):
            assert (await client.delete(path)).status_code == 204
            error_of(await client.delete(path), 404)
        assert await ok(await client.get("/models")) == {"data": [], "next": None}

    @SHARED
    @pytest.mark.parametrize(
        ("model", "param"),
        [
            ({"backends": []}, "backends"),
            ({}, "backends"),
            ({"backends": ["nowhere"]}, "backends"),
            ({"backends": ["engine", "engine"]}, "backends"),
            ({"parent": "nobody"}, "parent"),
            ({"parent": "m"}, "parent"),
            ({"parent": "alias"}, "parent"),
            ({"alias_of": "nobody"}, "alias_of"),
            ({"alias_of": "alias"}, "alias_of"),
            ({"alias_of": "m"}, "alias_of"),
            ({"alias_of": "base", "backends": ["engine"]}, "backends"),
            ({"backends": ["engine"], "max_output_tokens": 0}, "max_output_tokens"),
        ],
    )
    async def test_a_model_that_could_not_be_routed_is_refused(
        self, refusing: httpx.AsyncClient, model: Json, param: str
    ) -> None:
        await make_models(refusing, "base")
        await ok(await refusing.put("/models", json={"name": "alias", "alias_of": "base"}))
        assert error_of(await refusing.put("/models", json={"name": "m", **model}), 400)["param"] == param

    async def test_changes_at_once_leave_models_that_can_be_routed(
        self, client: httpx.AsyncClient, engine: AsyncEngine
    ) -> None:
        await make_models(client, "a", "b")
        changes = [
            client.put("/models", json={"name": "a", "alias_of": "b"}),
            client.put("/models", json={"name": "b", "alias_of": "a"}),
            client.put("/models", json={"name": "c", "parent": "a"}),
            client.delete("/backends/engine"),
        ]
        assert {reply.status_code for reply in await asyncio.gather(*changes)} <= {200, 400, 409}
        loaded = await catalogue.load(engine, Sealer(PEPPER))
        assert all(model.upstream_name and model.backends == ("engine",) for model in loaded.models.values())

    @SHARED
    @pytest.mark.parametrize(
        "base_url",
        ["", "engine:8000", "ftp://engine", "http://", "http://u:p@engine", "http://engine?x=1", "http://169.254.169.254",
         "http://[fe80::1]", "http://engine:99999", "http://en gine", "file:///etc/passwd",
         "http://a..b:80", "http://" + "a" * 64, "http://a\x00b", "http://%zz", "http://[::ffff:169.254.169.254]",
         "http://2852039166", "http://0xa9fea9fe", "http://169.254.43518"],
    )  # fmt: skip
    async def test_addresses_that_no_backend_has(self, refusing: httpx.AsyncClient, base_url: str) -> None:
        reply = await refusing.put("/backends", json={"name": "b", "base_url": base_url})
        assert error_of(reply, 400)["param"] == "base_url"

    async def test_a_backends_api_key_is_kept_sealed(self, client: httpx.AsyncClient, engine: AsyncEngine) -> None:
        async def api_key() -> str | None:
            return (await catalogue.load(engine, Sealer(PEPPER))).backends["cloud"].api_key

        setting = {"name": "cloud", "base_url": "https://api.example.com/v1"}
        reply = await client.put("/backends", json={**setting, "api_key": "sk-canary"})
        assert (await ok(reply))["has_api_key"] is True
        assert "sk-canary" not in reply.text + (await client.get("/backends")).text
        assert await api_key() == "sk-canary"
        await ok(await client.put("/backends", json=setting))
        assert await api_key() == "sk-canary"
        await ok(await client.put("/backends", json={**setting, "api_key": None}))
        assert await api_key() is None


class TestUsage:
    @pytest.fixture
    async def team(self, client: httpx.AsyncClient, engine: AsyncEngine) -> Json:
        team = await make_team(client, "=payments")
        async with engine.begin() as connection:
            records = [usage(team, "base", None, day) for day in (1, 2, 2)] + [usage(team, "tickets", "base", 2)]
            await ledger.insert_records(connection, records)
        return team

    async def test_sums_by_dimension(self, client: httpx.AsyncClient, team: Json) -> None:
        days = {"first_day": "2026-11-01", "last_day": "2026-11-30"}
        report = await ok(await client.get("/usage", params={**days, "group_by": "team,adapter"}))
        base, tickets = sorted(report["data"], key=lambda row: row.get("adapter", ""))
        assert (base["team"], base["requests"], base["prompt_tokens"], base["completion_tokens"]) == (
            "=payments",
            3,
            30,
            15,
        )
        assert (tickets["adapter"], tickets["requests"], tickets["cached_tokens"]) == ("tickets", 1, 4)
        by_day = (await ok(await client.get("/usage", params={**days, "group_by": "day"})))["data"]
        assert [(row["day"], row["requests"]) for row in by_day] == [("2026-11-01", 1), ("2026-11-02", 3)]
        total = (await ok(await client.get("/usage", params={**days, "group_by": ""})))["data"]
        assert [row["requests"] for row in total] == [4]

    async def test_filters(self, client: httpx.AsyncClient, team: Json) -> None:
        days = {"first_day": "2026-11-02", "last_day": "2026-11-02", "group_by": "model"}
        data = (await ok(await client.get("/usage", params={**days, "model": "base"})))["data"]
        assert [(row["model"], row["requests"]) for row in data] == [("base", 2)]
        assert (await ok(await client.get("/usage", params={**days, "team_id": str(uuid4())})))["data"] == []
        assert (await ok(await client.get("/usage", params={**days, "key_id": str(uuid4())})))["data"] == []

    async def test_csv(self, client: httpx.AsyncClient, team: Json) -> None:
        query = {"first_day": "2026-11-01", "last_day": "2026-11-01", "group_by": "team", "format": "csv"}
        reply = await client.get("/usage", params=query)
        assert reply.headers["content-type"] == "text/csv; charset=utf-8"
        assert reply.text.splitlines() == [
            "team_id,team,requests,prompt_tokens,cached_tokens,completion_tokens,estimated_requests,cost_microdollars",
            f"{team['id']},'=payments,1,10,4,5,0,0",
        ]

    @SHARED
    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("first_day=tomorrow", "first_day"),
            ("first_day=2026-11-02&last_day=2026-11-01", "first_day"),
            ("first_day=2020-01-01&last_day=2026-11-01", "first_day"),
            ("group_by=team,colour", "group_by"),
            ("format=xml", "format"),
            ("team_id=7", "team_id"),
        ],
    )
    async def test_a_wrong_query_is_named(self, refusing: httpx.AsyncClient, query: str, param: str) -> None:
        assert error_of(await refusing.get(f"/usage?{query}"), 400)["param"] == param


async def test_a_database_outage_is_a_503_with_retry_after() -> None:
    away = create_engine(Secret("postgresql://postgres@127.0.0.1:1/nowhere"))
    async with client_of(admin_app(away), ADMIN_KEY) as client:
        reply = await client.get("/teams")
    assert error_of(reply, 503)["code"] == "service_unavailable"
    assert reply.headers["retry-after"] == "2"


def usage(team: Json, model: str, parent: str | None, day: int) -> UsageRecord:
    return usage_record(
        created_at=datetime(2026, 11, day, 23, 59, tzinfo=UTC), team_id=UUID(team["id"]), model=model, parent=parent
    )
