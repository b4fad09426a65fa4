"""People: by password, by a provider that signs real tokens; sessions, their cookies, and pages of other sites."""

import re
import time
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc.jwk import OctKey, RSAKey
from litestar import Litestar
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.admin_under_test import ADMIN_KEY, Json, admin_app, client_of, ok, refused
from tests.gateway.oidc_provider import CLIENT_ID, CLIENT_SECRET, Provider, running_provider

from descant_gateway.config import OidcConfig, Secret
from descant_gateway.identity.sessions import COOKIE as SESSION_COOKIE
from descant_gateway.routes.admin.sign_in import PENDING_COOKIE

PASSWORD = "correct horse battery"
ORIGIN = "https://llm.example.com"


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with running_provider(Provider()) as provider:
        yield provider


@pytest.fixture
def app(engine: AsyncEngine, provider: Provider) -> Litestar:
    oidc = OidcConfig(issuer=provider.url, client_id=CLIENT_ID, client_secret=Secret(CLIENT_SECRET))
    return admin_app(engine, oidc=oidc, public_url=ORIGIN)


@pytest.fixture
async def root(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app, ADMIN_KEY) as client:
        yield client


@pytest.fixture
async def browser(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    """Without cookies of its own: the tests carry them by hand, since they are for https only."""
    async with client_of(app, None) as client:
        yield client


async def invite(root: httpx.AsyncClient, password: str | None = None, role: str | None = "admin") -> Json:
    person = await ok(
        await root.post("/people", json={"email": "Ada@Example.com", "name": "Ada", "password": password})
    )
    if role is not None:
        await ok(await root.post(f"/people/{person['id']}/memberships", json={"role": role}))
    return person


async def sign_in(
    browser: httpx.AsyncClient, password: str = PASSWORD, email: str = "ada@example.com"
) -> httpx.Response:
    return await browser.post("/sign-in/password", json={"email": email, "password": password})


def cookie_of(reply: httpx.Response, name: str) -> tuple[str, str]:
    """Its value, and its attributes as they were sent."""
    (header,) = [it for it in reply.headers.get_list("set-cookie") if it.startswith(f"{name}=")]
    value, _, attributes = header.removeprefix(f"{name}=").partition(";")
    return value.strip('"'), attributes.lower()


async def by_oidc(browser: httpx.AsyncClient, **change: str) -> httpx.Response:
    """The whole dance, as a browser does it."""
    started = await browser.get("/sign-in/oidc")
    assert started.status_code == 302, started.text
    pending, attributes = cookie_of(started, PENDING_COOKIE)
    assert all(word in attributes for word in ("httponly", "secure", "samesite=lax", "path=/"))
    async with httpx.AsyncClient(trust_env=False) as elsewhere:
        agreed = await elsewhere.get(started.headers["location"])
    back = urlsplit(agreed.headers["location"])
    assert f"{back.scheme}://{back.netloc}" == ORIGIN
    query = {name: values[0] for name, values in parse_qs(back.query).items()} | change
    return await browser.get("/sign-in/oidc/callback", params=query, headers={"cookie": f"{PENDING_COOKIE}={pending}"})


class TestPassword:
    async def test_in_and_out(self, root: httpx.AsyncClient, browser: httpx.AsyncClient, engine: AsyncEngine) -> None:
        await invite(root, PASSWORD)
        reply = await sign_in(browser)
        session = await ok(reply)
        cookie, attributes = cookie_of(reply, SESSION_COOKIE)
        assert cookie == session["token"]
        assert all(word in attributes for word in ("httponly", "secure", "samesite=lax", "path=/"))
        assert "domain" not in attributes
        me = await ok(await browser.get("/me", headers={"authorization": f"Bearer {cookie}"}))
        assert (me["actor"]["kind"], me["actor"]["name"]) == ("person", "Ada <ada@example.com>")
        async with engine.connect() as connection:
            stored = (await connection.execute(text("SELECT * FROM people, sessions"))).one()
        assert stored.password_hash.startswith("$argon2id$")
        assert cookie not in str(stored)
        await browser.post("/sign-out", headers={"authorization": f"Bearer {cookie}"})
        assert refused(await browser.get("/me", headers={"authorization": f"Bearer {cookie}"}), 401)

    async def test_a_wrong_password_and_an_unknown_person_are_one_answer_and_take_as_long(
        self, root: httpx.AsyncClient, browser: httpx.AsyncClient
    ) -> None:
        await invite(root, PASSWORD)
        started = time.process_time()
        wrong = await sign_in(browser, "wrong horse battery")
        after_wrong = time.process_time()
        unknown = await sign_in(browser, email="nobody@example.com")
        after_unknown = time.process_time()
        assert refused(wrong, 401) == refused(unknown, 401) == "sign_in_refused"
        assert wrong.json() == unknown.json()
        assert (after_unknown - after_wrong) > (after_wrong - started) / 5, "Argon2 ran for nobody too"

    async def test_the_hash_is_no_password(
        self, root: httpx.AsyncClient, browser: httpx.AsyncClient, engine: AsyncEngine
    ) -> None:
        await invite(root, PASSWORD)
        async with engine.connect() as connection:
            stored = (await connection.execute(text("SELECT password_hash FROM people"))).scalar_one()
        assert refused(await sign_in(browser, stored), 401)
        shown = (await root.get("/people")).text + (await root.get("/people/ada@example.com")).text
        assert stored not in shown

    async def test_guessing_is_slowed_down(self, root: httpx.AsyncClient, browser: httpx.AsyncClient) -> None:
        await invite(root, PASSWORD)
        codes = [(await sign_in(browser, f"guess number {n:04}")).status_code for n in range(9)]
        assert codes[0] == 401
        assert codes[-1] == 429
        assert (await sign_in(browser)).status_code == 429, "the right one too"

    async def test_a_new_password_and_a_disabled_person_end_the_sessions(
        self, root: httpx.AsyncClient, browser: httpx.AsyncClient
    ) -> None:
        person = await invite(root, PASSWORD)
        token = (await ok(await sign_in(browser)))["token"]
        bearer = {"authorization": f"Bearer {token}"}
        other = {"password": "another horse battery"}
        assert (await browser.put(f"/people/{person['id']}/password", json=other, headers=bearer)).status_code == 204
        assert refused(await browser.get("/me", headers=bearer), 401)
        token = (await ok(await sign_in(browser, "another horse battery")))["token"]
        await ok(await root.post(f"/people/{person['id']}/disable"))
        assert refused(await browser.get("/me", headers={"authorization": f"Bearer {token}"}), 401)

    async def test_a_session_ends_by_itself(
        self, root: httpx.AsyncClient, browser: httpx.AsyncClient, engine: AsyncEngine
    ) -> None:
        await invite(root, PASSWORD)
        bearer = {"authorization": f"Bearer {(await ok(await sign_in(browser)))['token']}"}
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE sessions SET expires_at = now()"))
        assert refused(await browser.get("/me", headers=bearer), 401)

    async def test_without_a_role_nothing_is_open(self, root: httpx.AsyncClient, browser: httpx.AsyncClient) -> None:
        await invite(root, PASSWORD, role=None)
        bearer = {"authorization": f"Bearer {(await ok(await sign_in(browser)))['token']}"}
        for path in ("/me", "/teams", "/keys", "/audit", "/people"):
            assert refused(await browser.get(path, headers=bearer), 403) == "permission_denied"


class TestOtherSites:
    @pytest.fixture
    async def cookie(self, root: httpx.AsyncClient, browser: httpx.AsyncClient) -> dict[str, str]:
        await invite(root, PASSWORD)
        value, _ = cookie_of(await sign_in(browser), SESSION_COOKIE)
        return {"cookie": f"{SESSION_COOKIE}={value}"}

    async def test_a_cookie_reads_and_changes_nothing_by_itself(
        self, browser: httpx.AsyncClient, cookie: dict[str, str]
    ) -> None:
        me = await ok(await browser.get("/me", headers=cookie))
        team = {"name": "payments"}
        assert refused(await browser.post("/teams", json=team, headers=cookie), 403) == "csrf"
        wrong = cookie | {"x-csrf-token": "0" * 64}
        assert refused(await browser.post("/teams", json=team, headers=wrong), 403) == "csrf"
        right = cookie | {"x-csrf-token": me["csrf_token"]}
        await ok(await browser.post("/teams", json=team, headers=right))

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://llm.example.com.evil.example"])
    async def test_another_origin_is_refused_whatever_it_knows(
        self, browser: httpx.AsyncClient, cookie: dict[str, str], origin: str
    ) -> None:
        token = (await ok(await browser.get("/me", headers=cookie)))["csrf_token"]
        headers = cookie | {"x-csrf-token": token}
        reply = await browser.post("/teams", json={"name": "x"}, headers=headers | {"origin": origin})
        assert refused(reply, 403) == "csrf"
        await ok(await browser.post("/teams", json={"name": "x"}, headers=headers | {"origin": ORIGIN}))


class TestOidc:
    async def test_who_was_invited_gets_in_and_is_known_by_subject_from_then_on(
        self, root: httpx.AsyncClient, browser: httpx.AsyncClient, provider: Provider
    ) -> None:
        await invite(root)
        reply = await by_oidc(browser)
        assert (reply.status_code, reply.headers["location"]) == (302, "/admin/v1/me"), reply.text
        value, attributes = cookie_of(reply, SESSION_COOKIE)
        assert "httponly" in attributes
        me = await ok(await browser.get("/me", headers={"cookie": f"{SESSION_COOKIE}={value}"}))
        assert me["actor"]["name"] == "Ada <ada@example.com>"
        provider.email = "moved@example.com"
        assert (await by_oidc(browser)).status_code == 302
        provider.subject, provider.email = "subject-2", "ada@example.com"
        assert refused(await by_oidc(browser), 401) == "sign_in_refused", "the address is another's now"

    async def test_strangers_and_unverified_addresses_stay_outside(
        self, root: httpx.AsyncClient, browser: httpx.AsyncClient, provider: Provider
    ) -> None:
        assert refused(await by_oidc(browser), 401) == "sign_in_refused"
        await invite(root)
        provider.email_verified = False
        assert refused(await by_oidc(browser), 401) == "sign_in_refused"

    @pytest.mark.parametrize(
        "claims",
        [
            {"aud": "another client"},
            {"aud": [CLIENT_ID, "another client"]},
            {"iss": "https://another.example"},
            {"nonce": "of another sign-in"},
            {"exp": 1000},
            {"sub": None},
        ],
    )
    async def test_a_token_that_is_not_for_this_sign_in(
        self, root: httpx.AsyncClient, browser: httpx.AsyncClient, provider: Provider, claims: Json
    ) -> None:
        await invite(root)
        provider.claims = claims
        assert refused(await by_oidc(browser), 401) == "sign_in_refused"

    async def test_a_token_of_another_key_or_a_shared_secret(
        self, root: httpx.AsyncClient, browser: httpx.AsyncClient, provider: Provider
    ) -> None:
        await invite(root)
        provider.signs_with = RSAKey.generate_key(2048, {"kid": "first"})
        assert refused(await by_oidc(browser), 401) == "sign_in_refused"
        provider.signs_with, provider.algorithm = OctKey.import_key(CLIENT_SECRET), "HS256"
        assert refused(await by_oidc(browser), 401) == "sign_in_refused"

    async def test_a_new_key_of_the_provider_is_found(
        self, root: httpx.AsyncClient, browser: httpx.AsyncClient, provider: Provider
    ) -> None:
        await invite(root)
        assert (await by_oidc(browser)).status_code == 302
        provider.key = RSAKey.generate_key(2048, {"kid": "second", "use": "sig"})
        assert (await by_oidc(browser)).status_code == 302

    async def test_a_state_or_code_of_another_browser(
        self, root: httpx.AsyncClient, browser: httpx.AsyncClient
    ) -> None:
        await invite(root)
        assert (await by_oidc(browser, state="guessed")).status_code == 400
        assert refused(await by_oidc(browser, code="guessed"), 401)
        assert refused(await by_oidc(browser, error="access_denied"), 401)
        without_cookie = await browser.get("/sign-in/oidc/callback", params={"state": "s", "code": "c"})
        assert without_cookie.status_code == 400

    async def test_a_provider_that_is_away_is_no_refusal(self, engine: AsyncEngine) -> None:
        oidc = OidcConfig(issuer="http://127.0.0.1:1", client_id=CLIENT_ID)
        async with client_of(admin_app(engine, oidc=oidc, public_url=ORIGIN), None) as browser:
            reply = await browser.get("/sign-in/oidc")
        assert refused(reply, 503) == "service_unavailable"
        assert reply.headers["retry-after"]

    async def test_without_a_provider_there_is_no_such_way(self, engine: AsyncEngine) -> None:
        async with client_of(admin_app(engine), None) as browser:
            assert refused(await browser.get("/sign-in/oidc"), 404)


async def test_no_secret_is_in_the_audit_log(root: httpx.AsyncClient, browser: httpx.AsyncClient) -> None:
    await invite(root, PASSWORD)
    token = (await ok(await sign_in(browser)))["token"]
    shown = (await root.get("/audit")).text
    assert PASSWORD not in shown
    assert token not in shown
    assert "argon2id" not in shown
    assert re.search(r'"password_hash": ?"\*\*\*"', shown)
    kinds = {entry["kind"] for entry in (await ok(await root.get("/audit")))["data"]}
    assert {"people", "memberships", "sessions"} <= kinds
