"""The admin API of the tests: an application on a real PostgreSQL, and clients with a credential each."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
from litestar import Litestar
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.app import build_app
from descant_gateway.config import DatabaseConfig, GatewayConfig, IdentityConfig, Secret, ValkeyConfig
from descant_gateway.pipeline import Gateway
from descant_gateway.routes.admin import admin_router

ADMIN_KEY = "an admin key of the tests"
PEPPER = Secret("p" * 32)

Json = dict[str, Any]


def admin_config(**identity: Any) -> GatewayConfig:
    """For an admin API alone: its engine is given, and nothing asks Valkey."""
    return GatewayConfig(
        database=DatabaseConfig(url=Secret("")),
        valkey=ValkeyConfig(url=Secret("")),
        identity=IdentityConfig(key_pepper=PEPPER, admin_key=Secret(ADMIN_KEY), **identity),
    )


def admin_app(engine: AsyncEngine, **identity: Any) -> Litestar:
    config = admin_config(**identity)
    return build_app(cast("Gateway", None), [admin_router(config, engine)])


@asynccontextmanager
async def client_of(app: Litestar, credential: str | None, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    if credential is not None:
        headers["Authorization"] = f"Bearer {credential}"
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway/admin/v1", headers=headers) as client:
        yield client


async def ok(reply: httpx.Response) -> Json:
    assert reply.is_success, reply.text
    return cast("Json", reply.json() if reply.content else {})


def refused(reply: httpx.Response, status: int) -> str:
    """The code of a refusal, in the shape that all have."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"].startswith("application/problem+json")
    problem = reply.json()
    assert (problem["status"], problem["detail"]) == (status, problem["error"]["message"])
    assert problem["title"]
    return cast("str", problem["code"])
