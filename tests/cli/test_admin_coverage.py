"""`descant admin` covers the admin API: every operation that is described, each of its fields and its queries.

Every command is run with each of its options against a server that writes down what it is asked.
"""

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import click
import pytest
from click.testing import CliRunner
from tests.gateway.admin_under_test import admin_app

from descant_cli.admin import admin

ID = str(UUID(int=7))
FOR_BROWSERS = {
    ("GET", "/admin/v1/sign-in/oidc"),
    ("GET", "/admin/v1/sign-in/oidc/callback"),
}
"""A provider's page sends a browser to them."""
ANSWER = {
    "id": ID, "name": "x", "token": "t", "api_key": "k", "secret": "s", "next": None, "memberships": [],
    "data": [{"id": ID, "name": "x", "tags": {}}],
}  # fmt: skip
"""Enough of every answer for a command to go on."""


@dataclass
class Asked:
    """What one operation was asked with, by all commands together."""

    fields: set[str] = field(default_factory=set)
    queries: set[str] = field(default_factory=set)


class Recorder:
    def __init__(self, templates: dict[tuple[str, str], re.Pattern[str]]) -> None:
        self.asked: defaultdict[tuple[str, str], Asked] = defaultdict(Asked)
        self.unknown: list[tuple[str, str]] = []
        self._templates = templates

    def take(self, method: str, target: str, body: Any) -> None:
        url = urlsplit(target)
        found = [op for op, pattern in self._templates.items() if op[0] == method and pattern.fullmatch(url.path)]
        if not found:
            self.unknown.append((method, url.path))
            return
        asked = self.asked[min(found, key=lambda op: op[1].count("{"))]
        asked.fields |= set(body or ())
        asked.queries |= {name for name, _ in parse_qsl(url.query)}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return cast("dict[str, Any]", admin_app(cast("Any", None)).openapi_schema.to_schema())


@pytest.fixture(scope="module")
def recorder(described: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    templates = {
        (method.upper(), path): re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)))
        for path, operations in described["paths"].items()
        for method in operations
    }
    recorder = Recorder(templates)
    with served(recorder) as url:
        document = tmp_path_factory.mktemp("given") / "given.json"
        document.write_text('{"strategy": "x"}')
        for words, command in commands(admin):
            for arguments in ways_to_call(words, command, document):
                result = CliRunner().invoke(admin, ["--url", url, "--admin-key", "k", *words, *arguments])
                assert result.exit_code == 0, (words, arguments, result.output)
    return recorder


class served:  # noqa: N801
    """The recorder on a socket, for as long as it is needed."""

    def __init__(self, recorder: Recorder) -> None:
        class Answer(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                recorder.take(self.command, self.path, json.loads(body) if body else None)
                reply = json.dumps(ANSWER).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def ways_to_call(words: tuple[str, ...], command: click.Command, document: Path) -> Iterator[list[str]]:
    """With what it needs alone, if that is something to do; with all that has a value besides; with each flag."""
    arguments = [sample(each, document) for each in command.params if isinstance(each, click.Argument)]
    options = [each for each in command.params if isinstance(each, click.Option) and each.name != "as_json"]
    required = [each for each in options if each.required or each.prompt]
    needed = [*arguments, *(word for each in required for word in words_of(each, document))]
    if words not in DOES_NOTHING_ALONE:
        yield needed
    valued = [each for each in options if each not in required and not each.is_flag]
    if valued:
        yield [*needed, *(word for each in valued for word in words_of(each, document))]
    for flag in (each for each in options if each.is_flag):
        yield [*needed, *words_of(flag, document)]


DOES_NOTHING_ALONE = {("team", "set"), ("team", "set-limits")}
"""They say so where nothing is to be changed."""


def words_of(option: click.Option, document: Path) -> list[str]:
    return [option.opts[0]] if option.is_flag else [option.opts[0], sample(option, document)]


def sample(parameter: click.Parameter, document: Path) -> str:
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return str(kind.choices[0])
    if isinstance(kind, click.File):
        return str(document)
    if kind is click.UUID:
        return ID
    if isinstance(kind, click.DateTime):
        return "2026-11-01"
    if isinstance(kind, click.types.StringParamType):
        return {"month": "2026-11"}.get(str(parameter.name), "x")
    return {"dimension": "model"}.get(kind.name, "1")


def operations(described: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for path, found in described["paths"].items():
        for method, operation in found.items():
            if (method.upper(), path) not in FOR_BROWSERS:
                yield (method.upper(), path), operation


def test_every_operation_is_a_command(described: dict[str, Any], recorder: Recorder) -> None:
    assert recorder.unknown == []
    assert {name for name, _ in operations(described)} == set(recorder.asked)


def test_every_field_of_a_body_can_be_given(described: dict[str, Any], recorder: Recorder) -> None:
    missing = {
        name: sorted(absent)
        for name, operation in operations(described)
        if (absent := fields_of(described, body_of(operation)) - recorder.asked[name].fields)
    }
    assert missing == {}


def test_every_query_can_be_asked(described: dict[str, Any], recorder: Recorder) -> None:
    """But for pages, which commands turn by themselves."""
    missing = {
        name: sorted(absent)
        for name, operation in operations(described)
        if (absent := queries_of(operation) - {"limit", "after"} - recorder.asked[name].queries)
    }
    assert missing == {}


def body_of(operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    return cast("dict[str, Any]", content.get("application/json", {}).get("schema", {}))


def fields_of(described: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        return fields_of(described, described["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    parts = [part for name in ("oneOf", "anyOf", "allOf") for part in schema.get(name, ())]
    return set(schema.get("properties", ())).union(*(fields_of(described, part) for part in parts))


def queries_of(operation: dict[str, Any]) -> set[str]:
    return {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
