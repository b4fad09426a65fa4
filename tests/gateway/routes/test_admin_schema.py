"""The admin API against its own description: what schemathesis makes of it is answered as described, never a 500."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from litestar import Litestar
from tests.gateway.admin_under_test import ADMIN_KEY, client_of
from tests.gateway.gateway_under_test import IDENTITY, config_for_tests, database

from descant_gateway.app import open_app
from descant_gateway.config import LedgerConfig, Secret

if TYPE_CHECKING:
    import schemathesis

NUM_CASES = 3
pytestmark = pytest.mark.slow
NOT_ASKED = ("/admin/v1/docs", "/admin/v1/sign-in", "/admin/v1/sign-out", "/v1", "/health", "/ready", "/metrics")
"""Pages, and what answers a browser with redirects."""


class Stage:
    """One application and database for all operations, in a loop that goes on between them."""

    def __init__(self, runner: asyncio.Runner, app: Litestar) -> None:
        self._runner, self._app = runner, app
        self.description = self._fetch()

    def ask(self, case: "schemathesis.Case") -> httpx.Response:
        return self._runner.run(asyncio.wait_for(self._ask(case), 20))

    def _fetch(self) -> dict[str, Any]:
        async def fetch() -> dict[str, Any]:
            async with client_of(self._app, None) as client:
                described: dict[str, Any] = (await client.get("/docs/openapi.json")).json()
                return described

        return self._runner.run(fetch())

    async def _ask(self, case: "schemathesis.Case") -> httpx.Response:
        body = case.body if isinstance(case.body, (dict, list, str, int, float, bool, type(None))) else None
        headers = {str(name): str(value).encode("latin-1", "replace") for name, value in (case.headers or {}).items()}
        async with client_of(self._app, ADMIN_KEY) as client:
            path = case.formatted_path.removeprefix("/admin/v1")
            content = None if body is None else json.dumps(body)
            query = {str(name): value for name, value in (case.query or {}).items()}
            headers = {"content-type": "application/json"} | {
                name: value for name, value in headers.items() if name.lower() not in ("authorization", "cookie")
            }
            return await client.request(case.method, path, params=query, content=content, headers=headers)


@pytest.fixture
def stage(postgres_url: str, valkey_url: str, tmp_path: Path) -> Iterator[Stage]:
    config = config_for_tests(
        valkey_url,
        database=database(postgres_url),
        identity=replace(IDENTITY, admin_key=Secret(ADMIN_KEY)),
        ledger=LedgerConfig(spool_dir=tmp_path),
    )
    with asyncio.Runner() as runner:
        opened = open_app(config)
        yield Stage(runner, runner.run(opened.__aenter__()))
        runner.run(opened.__aexit__(None, None, None))


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_operation_answers_as_it_is_described(stage: Stage, mode: str) -> None:
    import schemathesis  # late: only the process that runs this needs it

    operations = [each.ok() for each in schemathesis.openapi.from_dict(stage.description).get_all_operations()]
    asked = [each for each in operations if not each.path.startswith(NOT_ASKED)]
    assert len(asked) > 40
    for operation in asked:
        hold(stage, operation, schemathesis.GenerationMode(mode))


def hold(stage: Stage, operation: Any, mode: "schemathesis.GenerationMode") -> None:
    @settings(
        max_examples=NUM_CASES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        reply = stage.ask(case)
        where = (
            f"{case.method} {case.formatted_path} {case.query} {case.body!r}: {reply.status_code} {reply.text[:300]}"
        )
        assert reply.status_code < 500, where
        if reply.status_code == 404 and reply.json()["error"]["code"] == "unknown_url":
            return  # what stands in the path is not of its kind: no such route
        if reply.status_code >= 400:
            assert reply.headers["content-type"].startswith("application/problem+json"), where
            assert {"status", "detail", "code", "error"} <= reply.json().keys(), where
        else:
            conforms(stage.description, operation, reply, where)

    check()


def conforms(description: dict[str, Any], operation: Any, reply: httpx.Response, where: str) -> None:
    described = description["paths"][operation.path][operation.method]["responses"]
    assert str(reply.status_code) in described, where
    content = described[str(reply.status_code)].get("content", {}).get("application/json")
    if content and content["schema"] == {"type": "string"}:
        return  # a report, which comes as JSON or as CSV
    if content and reply.content and reply.headers["content-type"].startswith("application/json"):
        schema = {**content["schema"], "components": description["components"]}
        errors = [error.message for error in Draft202012Validator(schema).iter_errors(reply.json())]
        assert errors == [], where
