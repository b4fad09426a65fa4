"""The catalogue as code: mistakes by line and field, the difference to the database, and its following a change."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.catalogue.file import CatalogueFileError, parse_catalogue
from descant_gateway.catalogue.routing_policy import FailureKind
from descant_gateway.catalogue.snapshot import Protocol
from descant_gateway.config import Secret
from descant_gateway.feed.catalogue_watch import CatalogueWatch, apply_catalogue
from descant_gateway.main import gateway
from descant_gateway.sealing import Sealer
from descant_gateway.store import backends, models
from descant_gateway.store import catalogue as stored
from descant_gateway.store.errors import InUse

GOOD = """
[backends.engine-0]
base_url = "http://engine-0:8000/v1/"
max_in_flight = 64

[backends.cloud]
base_url = "https://api.example.com"
protocol = "anthropic"
external = true
api_key_env = "CLOUD_KEY"

[models."org/base"]
backends = { engine-0 = 3 }
fallbacks = [{ model = "claude", on = ["timeout", "5xx"] }]
shadow = { model = "claude", percent = 0.5 }
time_limits = { total_s = 60 }

[models.claude]
upstream_name = "claude-x"
backends = ["cloud"]

[models.pirate]
parent = "org/base"

[aliases]
default = "org/base"
"""
SEALER = Sealer(Secret("p" * 32))


def problems(text: str) -> list[str]:
    with pytest.raises(CatalogueFileError) as caught:
        parse_catalogue(text)
    return [str(problem) for problem in caught.value.problems]


def test_a_good_file_is_understood() -> None:
    catalogue = parse_catalogue(GOOD)
    assert catalogue.backends["engine-0"].base_url == "http://engine-0:8000"
    assert catalogue.backends["cloud"].protocol is Protocol.ANTHROPIC
    base = catalogue.models["org/base"]
    assert dict(base.weights) == {"engine-0": 3}
    assert base.fallbacks[0].on == {FailureKind.TIMEOUT, FailureKind.SERVER_ERROR}
    assert catalogue.aliases == {"default": "org/base"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[backends.a\n", "not TOML"),
        ("[modles.x]\n", "line 1: modles: unknown"),
        ("\n[backends.a]\nbase_url = 3\n", "line 3: backends.a.base_url: Expected `str`"),
        ('[backends.a]\nbase_url = "ftp://x"\n', "line 2: backends.a.base_url: 'ftp://x' must look like"),
        ('[backends.a]\nbase_url = "http://169.254.169.254"\n', "line 2: backends.a.base_url"),
        ('[backends.a]\nbase_url = "http://x"\nurl = 1\n', "line 3: backends.a.url"),
        ('[backends.a]\nbase_url = "http://x"\napi_key_env = "DESCANT_ADMIN_KEY"\n', "line 3: backends.a.api_key_env"),
        ("[models.m]\n", "line 1: models.m: a base model needs at least one backend"),
        ('[models.m]\nbackends = ["x"]\n', "line 2: models.m.backends: there is no backend 'x'"),
        ('[models.m]\nparent = "m"\n', "line 2: models.m.parent: there is no other model 'm'"),
        ('[models.m]\nparent = "n"\ncanary = { model = "k", percent = 200 }\n', "line 3: models.m.canary.percent"),
        ('[models.m]\nparent = "n"\nfallbacks = [{ model = "m" }]\n', "line 3: models.m.fallbacks: 'm' is the model"),
        ('[models.m]\nparent = "n"\nfallbacks = [{ model = "k", on = ["x"] }]\n', "line 3: models.m.fallbacks"),
        ('[aliases]\na = "b"\nb = "a"\n', "line 2: aliases.a: 'b' is an alias itself"),
        ('[aliases]\n"a b" = "gone"\n', "line 2: aliases.a b: there is no model 'gone'"),
    ],
)
def test_mistakes_are_named_by_line_and_field(text: str, says: str) -> None:
    assert any(problem.startswith(says) for problem in problems(text)), problems(text)


def test_all_mistakes_are_told_at_once() -> None:
    text = '[backends.a]\nbase_url = "x"\n[models.m]\nbackends = ["b"]\n[aliases]\nz = "y"\n'
    assert len(problems(text)) == 3


async def test_the_database_becomes_what_the_file_says_and_follows_it(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_KEY", "sk-from-environment")
    assert {change.kind.value for change in await apply_catalogue(engine, GOOD)} == {"add"}
    assert await apply_catalogue(engine, GOOD) == []
    catalogue = await stored.load(engine, SEALER)
    cloud = catalogue.backends["cloud"]
    assert (cloud.api_key, cloud.is_external, cloud.protocol) == ("sk-from-environment", True, Protocol.ANTHROPIC)
    base = catalogue.models["default"]
    assert (base.target, base.weights, base.policy.models) == ("org/base", (3,), {"claude"})
    assert catalogue.models["pirate"].backends == ("engine-0",)

    changed = GOOD.replace("= 64", "= 32").replace("[models.pirate]", "[models.lawyer]")
    told = [str(change) for change in await apply_catalogue(engine, changed)]
    assert told == ["change backend 'engine-0': max_in_flight: 64 -> 32", "add model 'lawyer'", "remove model 'pirate'"]
    assert await apply_catalogue(engine, "") != []
    assert (await stored.load(engine, SEALER)).models == {}


async def test_what_the_admin_api_made_is_left_alone_and_the_file_s_is_not_its_to_change(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await backends.put(connection, "own", base_url="http://own", sealed_api_key=None)
        await models.put(connection, models.NewModel(name="own", upstream_name="own", backends=["own"]))
    await apply_catalogue(engine, GOOD)
    async with engine.begin() as connection:
        with pytest.raises(InUse, match="comes from the catalogue file"):
            await backends.put(connection, "cloud", base_url="http://evil", sealed_api_key=None)
        with pytest.raises(InUse, match="comes from the catalogue file"):
            await models.remove(connection, "claude")
    await apply_catalogue(engine, "")
    assert set((await stored.load(engine, SEALER)).models) == {"own"}


async def test_what_is_still_needed_stays_and_nothing_else_changes(engine: AsyncEngine) -> None:
    await apply_catalogue(engine, GOOD)
    async with engine.begin() as connection:
        await models.put(connection, models.NewModel(name="mine", upstream_name="mine", parent="org/base"))
    with pytest.raises(InUse, match="mine"):
        await apply_catalogue(engine, "")
    assert len((await stored.load(engine, SEALER)).models) == 5


async def test_a_change_of_the_file_is_followed_and_a_mistake_changes_nothing(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    file = tmp_path / "descant.toml"
    file.write_text(GOOD)
    watch = CatalogueWatch(engine, file, look_every_s=0.02)
    await watch.start()
    try:
        file.write_text("[models.broken]\n")
        version = (await stored.load(engine, SEALER)).version
        file.write_text(GOOD + 'second = "claude"\n')
        names: set[str] = set()
        for _ in range(200):
            names = set((await stored.load(engine, SEALER)).models)
            if "second" in names:
                break
        assert "second" in names
        assert "broken" not in names
        assert (await stored.load(engine, SEALER)).version > version
    finally:
        await watch.close()


def test_check_shows_mistakes_and_the_difference(tmp_path: Path, postgres_url: str) -> None:
    file = tmp_path / "descant.toml"
    file.write_text(GOOD)
    run = CliRunner(env={"DESCANT_DATABASE_URL": postgres_url, "CLOUD_KEY": ""})
    shown = run.invoke(gateway, ["check", str(file)])
    assert shown.exit_code == 0, shown.output
    assert "warning: the environment variable CLOUD_KEY is not set here" in shown.output
    assert "add backend 'cloud'" in shown.output
    assert "6 differences" in shown.output
    offline = run.invoke(gateway, ["check", "--offline", str(file)])
    assert "2 backends, 3 models, 1 aliases" in offline.output
    file.write_text(GOOD.replace("external", "exernal"))
    wrong = run.invoke(gateway, ["check", str(file)])
    assert wrong.exit_code == 1
    assert f"{file}: line 9: backends.cloud.exernal" in wrong.output
