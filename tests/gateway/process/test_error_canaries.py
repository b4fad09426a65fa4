"""What is wrong with a request is told without the secrets that it holds: of the admin API and of refused calls."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.admin_under_test import ADMIN_KEY, admin_app, client_of
from tests.gateway.gateway_under_test import World, bearer, running_gateway
from tests.gateway.upstream import Upstream, running

from descant_gateway.identity import keys

CANARY = "sk-CANARY-4f1d"
WRONG = [
    ("PUT", "/backends", {"name": "b", "base_url": f"http://user:{CANARY}@host"}),
    ("PUT", "/backends", {"name": "b", "base_url": f"http://host?key={CANARY}"}),
    ("PUT", "/backends", {"name": "", "base_url": "http://host", "api_key": CANARY}),
    ("PUT", "/backends", {"name": "b", "base_url": "http://host", "api_key": [CANARY]}),
    ("PUT", "/backends", {"name": "b", "base_url": "http://host", "api_key": CANARY, "unknown": 1}),
    ("POST", "/people", {"email": "no address", "name": "x", "password": CANARY}),
    ("POST", "/people", {"email": "a@example.com", "name": 7, "password": CANARY}),
    ("POST", "/sign-in/password", {"email": "a@example.com", "password": CANARY}),
    ("POST", "/sign-in/password", {"email": "a@example.com", "password": {"x": CANARY}}),
    ("POST", "/keys", {"team_id": CANARY, "name": "k"}),
]


@pytest.fixture
async def client(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(admin_app(engine), ADMIN_KEY) as client:
        yield client


@pytest.mark.parametrize(("method", "path", "body"), WRONG, ids=lambda value: str(value)[:40])
async def test_no_refusal_of_the_admin_api_says_a_secret(
    client: httpx.AsyncClient, method: str, path: str, body: dict
) -> None:
    with structlog.testing.capture_logs() as logged:
        reply = await client.request(method, path, json=body)
    assert 400 <= reply.status_code < 500, reply.text
    assert CANARY not in reply.text
    assert CANARY not in str(reply.headers)
    assert CANARY not in str(logged)


async def test_a_body_that_is_torn_is_not_quoted(client: httpx.AsyncClient) -> None:
    content = json.dumps({"name": "b", "base_url": "http://host", "api_key": CANARY})[:-5]
    reply = await client.put("/backends", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert CANARY not in reply.text


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {CANARY}"},
        {"authorization": f"Basic {CANARY}"},
        {"authorization": f"Bearer {keys.generate().text}"},
        {"x-api-key": CANARY},
        {"authorization": f"Bearer {keys.generate().text}", "x-request-id": CANARY + "\u00e9"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_no_refusal_of_a_call_says_its_credential(valkey_url: str, headers: dict[str, str]) -> None:
    raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    with structlog.testing.capture_logs() as logged:
        async with running_gateway(World(), valkey_url) as gateway:
            reply = await gateway.client.post("/v1/chat/completions", json={"model": "m"}, headers=raw)
    assert reply.status_code == 401
    said = reply.text + str(reply.headers) + str(logged)
    assert all(value.removeprefix("Bearer ").removeprefix("Basic ") not in said for value in headers.values())


async def test_a_prompt_is_in_no_error(valkey_url: str) -> None:
    """Not of a body that can't be read, nor of a backend that breaks."""
    world = World()
    async with running(Upstream(status=500, error_body=b"\xff")) as upstream:
        world.add_model("m", upstream.backend)
        with structlog.testing.capture_logs() as logged:
            async with running_gateway(world, valkey_url) as gateway:
                for body in (
                    json.dumps({"model": "m", "messages": [{"role": "user", "content": CANARY}]})[:-3],
                    json.dumps({"model": "m", "messages": CANARY, "max_tokens": CANARY}),
                    json.dumps({"model": "m", "messages": [{"role": "user", "content": CANARY}]}),
                ):
                    reply = await gateway.client.post(
                        "/v1/chat/completions", content=body, headers=bearer(world.add_key())
                    )
                    assert reply.status_code >= 400
                    assert CANARY not in reply.text
    assert CANARY not in str(logged)
