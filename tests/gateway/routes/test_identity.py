"""Who may do what to whom: roles and their levels, keys made by keys, service accounts, audit log, repeated POSTs."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from litestar import Litestar
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.admin_under_test import ADMIN_KEY, Json, admin_app, client_of, ok, refused

from descant_gateway.identity.delegation import KeyRights, narrowed
from descant_gateway.identity.roles import Role
from descant_gateway.routes.access import OPT, Access, walk
from descant_wire.errors import ApiError

As = Callable[[str], Awaitable[httpx.AsyncClient]]
SOON = datetime.now(UTC) + timedelta(days=1)
LATER = SOON + timedelta(days=1)


@pytest.fixture
def app(engine: AsyncEngine) -> Litestar:
    return admin_app(engine)


@pytest.fixture
async def root(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app, ADMIN_KEY) as client:
        yield client


@pytest.fixture
async def holding(app: Litestar) -> AsyncIterator[As]:
    """A client that holds this key."""
    async with AsyncExitStack() as stack:

        async def client(credential: str) -> httpx.AsyncClient:
            return await stack.enter_async_context(client_of(app, credential))

        yield client


async def make_team(root: httpx.AsyncClient, name: str = "payments", organization: str = "default") -> Json:
    return await ok(await root.post("/teams", json={"name": name, "organization": organization}))


async def make_key(client: httpx.AsyncClient, team: Json, role: str | None = None, **fields: object) -> Json:
    rights = {"role": role, "scopes": ["admin", "chat"]} if role else {}
    return await ok(
        await client.post("/keys", json={"team_id": team["id"], "name": role or "plain", **rights, **fields})
    )


async def make_account(root: httpx.AsyncClient, role: str, **place: object) -> Json:
    body = {"name": f"{role} {uuid4()}", "role": role, **place}
    return await ok(await root.post("/service-accounts", json=body))


class TestRoles:
    @pytest.mark.parametrize(
        ("role", "may"),
        [
            (None, set()),
            ("viewer", {"see"}),
            ("member", {"see", "make a key"}),
            ("admin", {"see", "make a key", "revoke", "make a project"}),
            ("owner", {"see", "make a key", "revoke", "make a project"}),
        ],
    )
    async def test_a_role_over_a_team(self, root: httpx.AsyncClient, holding: As, role: str | None, may: set) -> None:
        team = await make_team(root)
        others_key = await make_key(root, team)
        client = await holding((await make_key(root, team, role))["api_key"])
        project = {"team_id": team["id"], "name": "p"}
        done = {
            "see": await client.get(f"/teams/{team['id']}"),
            "make a key": await client.post("/keys", json={"team_id": team["id"], "name": "mine"}),
            "revoke": await client.post(f"/keys/{others_key['id']}/revoke"),
            "make a project": await client.post("/projects", json=project),
            "make a team": await client.post("/teams", json={"name": "another"}),
            "lift its limits": await client.patch(f"/teams/{team['id']}", json={"requests_per_minute": None}),
            "make an organization": await client.post("/organizations", json={"name": "another"}),
            "move a backend": await client.put("/backends", json={"name": "b", "base_url": "http://evil:1"}),
        }
        assert {what for what, reply in done.items() if reply.is_success} == may
        assert {reply.status_code for what, reply in done.items() if what not in may} <= {403}

    async def test_what_is_another_team_s_is_not_there(self, root: httpx.AsyncClient, holding: As) -> None:
        own, other = await make_team(root), await make_team(root, "support")
        others_key = await make_key(root, other)
        project = await ok(await root.post("/projects", json={"team_id": other["id"], "name": "p"}))
        client = await holding((await make_key(root, own, "owner"))["api_key"])
        for method, path, body in [
            ("GET", f"/teams/{other['id']}", None),
            ("GET", f"/keys/{others_key['id']}", None),
            ("PATCH", f"/keys/{others_key['id']}", {"name": "x"}),
            ("POST", f"/keys/{others_key['id']}/revoke", None),
            ("POST", f"/keys/{others_key['id']}/rotate", {}),
            ("POST", "/keys", {"team_id": other["id"], "name": "x"}),
            ("POST", "/projects", {"team_id": other["id"], "name": "x"}),
            ("PATCH", f"/projects/{project['id']}", {}),
            ("DELETE", f"/projects/{project['id']}", None),
        ]:
            reply = await client.request(method, path, json=body)
            assert reply.status_code == 404, (method, path, reply.text)
        assert [team["id"] for team in (await ok(await client.get("/teams")))["data"]] == [own["id"]]
        assert others_key["id"] not in (await client.get("/keys")).text
        assert (await ok(await client.get("/projects")))["data"] == []

    async def test_a_role_over_an_organization_ends_at_its_border(self, root: httpx.AsyncClient, holding: As) -> None:
        await ok(await root.post("/organizations", json={"name": "acme"}))
        inside, outside = await make_team(root, "inside", "acme"), await make_team(root, "outside")
        account = await make_account(root, "admin", organization="acme")
        key = await make_key(root, inside, "admin", service_account_id=account["id"])
        client = await holding(key["api_key"])
        second = await make_team(client, "second", "acme")
        await make_key(client, second)
        assert refused(await client.post("/teams", json={"name": "x"}), 403)
        assert refused(await client.get(f"/teams/{outside['id']}"), 404)
        assert refused(await client.post("/service-accounts", json={"name": "x", "role": "viewer"}), 403)
        body = {"name": "x", "role": "owner", "organization": "acme"}
        assert refused(await client.post("/service-accounts", json=body), 403), "an owner is made by an owner"
        assert {team["name"] for team in (await ok(await client.get("/teams")))["data"]} == {"inside", "second"}
        names = [row["name"] for row in (await ok(await client.get("/organizations")))["data"]]
        assert names == ["acme"]

    async def test_every_route_refuses_a_key_without_a_role(self, app: Litestar, root: httpx.AsyncClient) -> None:
        key = await make_key(root, await make_team(root))
        async with client_of(app, key["api_key"]) as client:
            for path, methods, handler in walk(app.routes):
                if handler.opt[OPT] is not Access.ADMIN:
                    continue
                for method in methods:
                    filled = re.sub(r"\{\w+_id\}", str(uuid4()), path.removeprefix("/admin/v1")).replace(
                        "{version}", "7"
                    )
                    reply = await client.request(method, filled, json={})
                    assert reply.status_code == 403, (method, path, reply.text)

    async def test_a_member_of_a_team_gives_nobody_a_role(self, root: httpx.AsyncClient, holding: As) -> None:
        team = await make_team(root)
        await ok(await root.post("/people", json={"email": "eve@example.com", "name": "Eve"}))
        client = await holding((await make_key(root, team, "admin"))["api_key"])
        path = "/people/eve@example.com/memberships"
        assert refused(await client.post(path, json={"role": "viewer"}), 403), "the installation"
        assert refused(await client.post(path, json={"role": "viewer", "organization": "default"}), 403)
        assert refused(await client.post(path, json={"role": "owner", "team_id": team["id"]}), 403)
        given = await ok(await client.post(path, json={"role": "admin", "team_id": team["id"]}))
        assert given["organization_id"] == team["organization_id"]
        await ok(await root.post(path, json={"role": "owner", "team_id": team["id"]}))
        assert refused(await client.delete(f"{path}/{given['id']}"), 403), "an owner is removed by an owner"


class TestKeysMadeByKeys:
    FULL = KeyRights(
        requests_per_minute=60,
        tokens_per_minute=1000,
        allowed_models=["a", "b"],
        allowed_adapters=["x"],
        scopes=["admin", "chat"],
        role=Role.MEMBER,
        ip_ranges=["10.0.0.0/8"],
        expires_at=SOON,
    )

    def test_what_is_left_open_becomes_the_creator_s(self) -> None:
        made = narrowed(KeyRights(), self.FULL)
        expected = {name: getattr(self.FULL, name) for name in KeyRights.__struct_fields__}
        assert made == KeyRights(**expected | {"scopes": ["chat"], "role": None}), "to administer is asked for"

    @pytest.mark.parametrize(
        "wider",
        [
            {"requests_per_minute": 61},
            {"tokens_per_minute": 1001},
            {"allowed_models": ["a", "c"]},
            {"allowed_adapters": ["x", "y"]},
            {"scopes": ["chat", "embeddings"]},
            {"scopes": ["admin", "chat"], "role": Role.ADMIN},
            {"ip_ranges": ["10.0.0.0/7"]},
            {"ip_ranges": ["10.1.0.0/16", "::/0"]},
            {"expires_at": LATER},
        ],
    )
    def test_what_exceeds_the_creator_is_refused(self, wider: Json) -> None:
        with pytest.raises(ApiError) as caught:
            narrowed(KeyRights(**wider), self.FULL)
        assert (caught.value.status, caught.value.detail.code) == (403, "exceeds_creator")

    def test_less_is_as_asked(self) -> None:
        less = KeyRights(
            requests_per_minute=5,
            tokens_per_minute=10,
            allowed_models=["a"],
            allowed_adapters=[],
            scopes=["chat"],
            ip_ranges=["10.1.0.0/16"],
            expires_at=SOON - timedelta(hours=1),
        )
        assert narrowed(less, self.FULL) == less

    async def test_over_the_api(self, root: httpx.AsyncClient, holding: As, engine: AsyncEngine) -> None:
        team = await make_team(root)
        parent = await make_key(
            root, team, "admin", requests_per_minute=60, ip_ranges=["127.0.0.0/8"], expires_at=SOON.isoformat()
        )
        async with engine.begin() as connection:
            await connection.execute(
                text("INSERT INTO limits (level, owner_id, kind, capacity) VALUES ('key', :id, 'tokens_per_day', 5)"),
                {"id": parent["id"]},
            )
        client = await holding(parent["api_key"])
        child = await make_key(client, team)
        assert (child["requests_per_minute"], child["ip_ranges"]) == (60, ["127.0.0.0/8"])
        assert child["created_by"] == f"key:{parent['public_id']}"
        assert child["scopes"] == ["chat"]
        async with engine.connect() as connection:
            copied = text("SELECT capacity FROM limits WHERE owner_id = :id")
            assert (await connection.execute(copied, {"id": child["id"]})).scalar_one() == 5
        body = {"team_id": team["id"], "name": "x"}
        for wider in (
            {"requests_per_minute": 61},
            {"scopes": ["models"]},
            {"role": "owner", "scopes": ["admin"]},
            {"expires_at": LATER.isoformat()},
        ):
            assert refused(await client.post("/keys", json={**body, **wider}), 403), wider

    async def test_no_key_grows_by_a_change(self, root: httpx.AsyncClient, holding: As) -> None:
        team = await make_team(root)
        mine = await make_key(root, team, "admin", requests_per_minute=60)
        richer = await make_key(root, team, "owner")
        client = await holding(mine["api_key"])
        for body in ({"requests_per_minute": 61}, {"scopes": ["admin", "chat", "models"]}):
            assert refused(await client.patch(f"/keys/{mine['id']}", json=body), 403) == "exceeds_creator"
        lifted = await ok(await client.patch(f"/keys/{mine['id']}", json={"requests_per_minute": None}))
        assert lifted["requests_per_minute"] == 60
        assert refused(await client.post(f"/keys/{richer['id']}/rotate", json={}), 403), "its secret would be ours"
        assert refused(await client.patch(f"/keys/{richer['id']}", json={"name": "x"}), 403)
        plain = await make_key(root, team, scopes=["models"])
        assert refused(await client.post(f"/keys/{plain['id']}/rotate", json={}), 403) == "exceeds_creator"
        assert (await ok(await client.post(f"/keys/{mine['id']}/rotate", json={})))["id"] == mine["id"]

    async def test_no_key_lifts_the_limits_of_keys(self, root: httpx.AsyncClient, holding: As) -> None:
        team = await make_team(root)
        mine = await make_key(root, team, "admin")
        limit = {"level": "key", "owner_id": mine["id"], "kind": "tokens_per_day", "capacity": 5}
        kept = await ok(await root.put("/limits", json=limit))
        client = await holding(mine["api_key"])
        assert refused(await client.put("/limits", json=limit | {"capacity": 10**6}), 403)
        assert refused(await client.delete(f"/limits/{kept['id']}"), 403)

    async def test_a_key_with_a_role_needs_the_scope_and_the_reverse(self, root: httpx.AsyncClient) -> None:
        team = await make_team(root)
        for rights in ({"role": "admin"}, {"scopes": ["admin"]}):
            reply = await root.post("/keys", json={"team_id": team["id"], "name": "x", **rights})
            assert reply.json()["error"]["param"] == "scopes", reply.text

    async def test_a_key_of_a_disabled_service_account_ends(self, root: httpx.AsyncClient, holding: As) -> None:
        team = await make_team(root)
        account = await make_account(root, "viewer", team_id=team["id"])
        key = await make_key(root, team, "viewer", service_account_id=account["id"])
        client = await holding(key["api_key"])
        assert (await client.get("/teams")).status_code == 200
        await ok(await root.post(f"/service-accounts/{account['id']}/disable"))
        assert refused(await client.get("/teams"), 401)
        assert (await ok(await root.get(f"/keys/{key['id']}")))["revoked_at"]

    async def test_revoked_expired_and_from_elsewhere(self, root: httpx.AsyncClient, holding: As) -> None:
        team = await make_team(root)
        elsewhere = await make_key(root, team, "viewer", ip_ranges=["192.0.2.0/24"])
        assert refused(await (await holding(elsewhere["api_key"])).get("/teams"), 403) == "ip_not_allowed"
        soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
        expiring = await holding((await make_key(root, team, "viewer", expires_at=soon))["api_key"])
        await asyncio.sleep(1.1)
        assert refused(await expiring.get("/teams"), 401)


class TestAudit:
    async def test_who_what_before_after_and_from_where(self, root: httpx.AsyncClient, holding: As) -> None:
        team = await make_team(root)
        key = await make_key(root, team, "admin")
        client = await holding(key["api_key"])
        target = await make_key(client, team, requests_per_minute=60)
        changed = await client.patch(
            f"/keys/{target['id']}", json={"requests_per_minute": 5}, headers={"x-request-id": "req_7"}
        )
        await ok(changed)
        (entry,) = (await ok(await root.get("/audit", params={"subject": target["id"], "limit": 1})))["data"]
        assert (entry["actor_kind"], entry["actor_id"]) == ("key", key["public_id"])
        assert (entry["action"], entry["kind"], entry["changed"]) == ("update", "keys", ["requests_per_minute"])
        assert (entry["before"]["requests_per_minute"], entry["after"]["requests_per_minute"]) == (60, 5)
        assert entry["request"] == f"PATCH /admin/v1/keys/{target['id']}"
        assert (entry["address"], entry["request_id"]) == ("127.0.0.1", "req_7")
        assert entry["team_id"] == team["id"]

    async def test_by_hand_in_the_database_too(self, root: httpx.AsyncClient, engine: AsyncEngine) -> None:
        team = await make_team(root)
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE teams SET name = 'by hand'"))
        (entry,) = (await ok(await root.get("/audit", params={"subject": team["id"], "limit": 1})))["data"]
        assert (entry["actor_kind"], entry["after"]["name"]) == ("database", "by hand")

    @pytest.mark.parametrize(
        "change", ["UPDATE audit_log SET actor_name = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
    )
    async def test_nothing_changes_it(self, root: httpx.AsyncClient, engine: AsyncEngine, change: str) -> None:
        await make_team(root)
        with pytest.raises(DBAPIError, match="audit_log is append-only"):
            async with engine.begin() as connection:
                await connection.execute(text(change))

    async def test_a_change_rolled_back_leaves_no_entry(self, root: httpx.AsyncClient) -> None:
        await make_team(root)
        before = (await ok(await root.get("/audit")))["data"]
        assert refused(await root.post("/teams", json={"name": "payments"}), 409)
        assert (await ok(await root.get("/audit")))["data"] == before

    async def test_no_secret_is_in_it(self, root: httpx.AsyncClient, engine: AsyncEngine) -> None:
        key = await make_key(root, await make_team(root))
        await ok(await root.post(f"/keys/{key['id']}/rotate", json={}))
        backend = {"name": "cloud", "base_url": "https://api.example.com", "api_key": "sk-canary-secret"}
        await ok(await root.put("/backends", json=backend))
        async with engine.connect() as connection:
            everything = str((await connection.execute(text("SELECT * FROM audit_log"))).all())
            hmacs = (await connection.execute(text("SELECT encode(secret_hmac, 'hex') FROM key_secrets"))).scalars()
            sealed = (await connection.execute(text("SELECT encode(sealed_api_key, 'hex') FROM backends"))).scalars()
            hidden = ["sk-canary", key["api_key"], key["api_key"][17:-6], *hmacs, *sealed]
        assert "***" in everything
        assert not [secret for secret in hidden if secret in everything]

    async def test_pages_hold_every_entry_once_newest_first(self, root: httpx.AsyncClient) -> None:
        for number in range(5):
            await make_team(root, f"team {number}")
        seen, after = [], None
        for _ in range(4):
            query = {"kind": "teams", "limit": "2"} | ({"after": after} if after else {})
            page = await ok(await root.get("/audit", params=query))
            seen += [entry["after"]["name"] for entry in page["data"]]
            if (after := page["next"]) is None:
                break
        assert seen == [f"team {number}" for number in reversed(range(5))]
        assert after is None

    async def test_it_shows_what_one_administers(self, root: httpx.AsyncClient, holding: As) -> None:
        own, other = await make_team(root), await make_team(root, "support")
        client = await holding((await make_key(root, own, "admin"))["api_key"])
        entries = (await ok(await client.get("/audit")))["data"]
        assert {entry["team_id"] for entry in entries} == {own["id"]}
        assert other["id"] not in str(entries)


class TestIdempotency:
    async def test_the_same_request_is_done_once(self, root: httpx.AsyncClient, engine: AsyncEngine) -> None:
        team = await make_team(root)
        body, headers = {"team_id": team["id"], "name": "ci"}, {"idempotency-key": "one"}
        first = await root.post("/keys", json=body, headers=headers)
        again = await root.post("/keys", json=body, headers=headers)
        assert (again.status_code, again.json()) == (first.status_code, first.json()), "with the key's text"
        assert again.headers["idempotency-replayed"] == "true"
        assert len((await ok(await root.get("/keys")))["data"]) == 1
        async with engine.connect() as connection:
            kept = str((await connection.execute(text("SELECT * FROM idempotent_replies"))).all())
        assert first.json()["api_key"] not in kept

    async def test_another_request_under_the_same_key(self, root: httpx.AsyncClient) -> None:
        headers = {"idempotency-key": "one"}
        await ok(await root.post("/teams", json={"name": "a"}, headers=headers))
        other = await root.post("/teams", json={"name": "b"}, headers=headers)
        assert refused(other, 422) == "idempotency_key_reused"
        assert refused(await root.post("/organizations", json={"name": "a"}, headers=headers), 422)

    async def test_at_once(self, root: httpx.AsyncClient) -> None:
        headers = {"idempotency-key": "one"}
        sent = [root.post("/teams", json={"name": "a"}, headers=headers) for _ in range(6)]
        replies = await asyncio.gather(*sent)
        assert {reply.status_code for reply in replies} <= {201, 409}
        assert sum("idempotency-replayed" not in reply.headers for reply in replies if reply.is_success) == 1
        assert len((await ok(await root.get("/teams")))["data"]) == 1

    async def test_a_refusal_is_not_kept(self, root: httpx.AsyncClient) -> None:
        headers = {"idempotency-key": "one"}
        body = {"name": "a", "organization": "acme"}
        assert refused(await root.post("/teams", json=body, headers=headers), 404)
        await ok(await root.post("/organizations", json={"name": "acme"}))
        await ok(await root.post("/teams", json=body, headers=headers))

    async def test_callers_have_keys_of_their_own(self, root: httpx.AsyncClient, holding: As) -> None:
        team = await make_team(root)
        client = await holding((await make_key(root, team, "admin"))["api_key"])
        body, headers = {"team_id": team["id"], "name": "x"}, {"idempotency-key": "one"}
        first = await ok(await root.post("/keys", json=body, headers=headers))
        second = await ok(await client.post("/keys", json=body, headers=headers))
        assert first["id"] != second["id"]

    @pytest.mark.parametrize("key", ["", "x" * 256])
    async def test_a_key_that_is_none(self, root: httpx.AsyncClient, key: str) -> None:
        assert (await root.post("/teams", json={"name": "a"}, headers={"idempotency-key": key})).status_code == 400
