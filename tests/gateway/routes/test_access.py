"""Deny by default: every route of the application declares who may call it and how often, or it does not start."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from litestar import Litestar, get
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.admin_under_test import ADMIN_KEY, admin_app, client_of, refused
from tests.gateway.gateway_under_test import config_for_tests, database

from descant_gateway.app import build_app, open_app
from descant_gateway.config import LedgerConfig
from descant_gateway.identity.roles import Level, Permission, Role
from descant_gateway.routes.access import LIMIT, OPT, PERMISSION, Access, Rate, RateLimitedBy, Undeclared, walk

PUBLIC = {
    "/health",
    "/ready",
    "/metrics",
    "/admin/v1/docs",
    "/admin/v1/docs/{path}",
    "/admin/v1/docs/openapi.json",
    "/admin/v1/docs/scalar",
    "/admin/v1/sign-in/password",
    "/admin/v1/sign-in/oidc",
    "/admin/v1/sign-in/oidc/callback",
    "/admin/v1/sign-out",
}
"""Frozen: a route that is open to everybody is a decision."""


@pytest.fixture
async def whole(postgres_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Litestar]:
    config = config_for_tests(valkey_url, database=database(postgres_url), ledger=LedgerConfig(spool_dir=tmp_path))
    async with open_app(config) as app:
        yield app


async def test_every_route_declares_a_permission_and_a_limit(whole: Litestar) -> None:
    walked = list(walk(whole.routes))
    assert len(walked) > 40
    for path, _, handler in walked:
        assert isinstance(handler.opt.get(OPT), Access), path
        assert isinstance(handler.opt.get(LIMIT), (Rate, RateLimitedBy)), path
        if path.startswith("/admin/v1") and path not in PUBLIC:
            assert handler.opt[OPT] is Access.ADMIN, path
            assert isinstance(handler.opt.get(PERMISSION), Permission), path
    assert {path for path, _, handler in walked if handler.opt[OPT] is Access.PUBLIC} <= PUBLIC


async def test_the_installation_s_own_things_need_a_role_over_it(whole: Litestar) -> None:
    """Backends decide where requests go: no organization's owner may say."""
    for path, methods, handler in walk(whole.routes):
        is_shared = path.startswith(("/admin/v1/backends", "/admin/v1/models")) and methods & {"PUT", "DELETE", "POST"}
        if is_shared:
            assert handler.opt[PERMISSION] == Permission(Role.ADMIN, Level.INSTALLATION), path


@pytest.mark.parametrize(
    "opt", [{}, {OPT: Access.PUBLIC}, {LIMIT: Rate(1)}, {OPT: Access.ADMIN, LIMIT: Rate(1)}, {OPT: "public", LIMIT: 1}]
)
def test_an_app_with_a_route_that_declares_too_little_does_not_start(opt: dict) -> None:
    @get("/careless", opt=opt)
    async def careless() -> None:
        return None

    with pytest.raises(Undeclared, match="GET /careless"):
        build_app(None, [careless])


async def test_a_rate_is_held(engine: AsyncEngine) -> None:
    app = admin_app(engine)
    async with client_of(app, None) as client:
        replies = [await client.get("/docs/openapi.json") for _ in range(30)]
    assert replies[0].status_code == 200
    assert replies[-1].status_code == 429
    assert int(replies[-1].headers["retry-after"]) >= 1


async def test_the_description_has_every_route_and_no_secret(engine: AsyncEngine) -> None:
    app = admin_app(engine)
    async with client_of(app, None) as client:
        described = (await client.get("/docs/openapi.json")).json()
        page = await client.get("/docs")
    paths = {re.sub(r"\{(\w+)(:\w+)?\}", r"{\1}", path) for path, _, _ in walk(app.routes)}
    documented = {path for path in paths if not path.startswith("/admin/v1/docs")}
    assert documented <= set(described["paths"])
    assert "scalar" in page.text
    assert "@latest" not in page.text


async def test_a_wrong_host_or_path_opens_nothing(engine: AsyncEngine) -> None:
    """The route that was found decides, never the text of the URL or a header that says where it went."""
    app = admin_app(engine)
    for header in ("Host", "X-Forwarded-Host", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix"):
        async with client_of(app, None, **{header: "evil.example"}) as client:
            assert refused(await client.get("/teams"), 401) == "invalid_api_key"
            assert refused(await client.get(f"/keys/{uuid4()}?next=/health"), 401) == "invalid_api_key"


async def test_many_wrong_credentials_are_slowed_down(engine: AsyncEngine) -> None:
    app = admin_app(engine)
    async with client_of(app, "wrong") as client:
        codes = [(await client.get("/me")).status_code for _ in range(260)]
    assert codes[0] == 401
    assert codes[-1] == 429
    async with client_of(app, ADMIN_KEY) as client:
        assert (await client.get("/me")).status_code == 200
