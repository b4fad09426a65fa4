"""Who is calling, from a header and a catalogue."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from uuid import uuid4

import pytest
from msgspec.structs import replace
from tests.gateway.gateway_under_test import PEPPER, World

from descant_gateway.catalogue.snapshot import AllowList, Organization, Project
from descant_gateway.identity import keys
from descant_gateway.identity.authenticate import Caller, authenticate, permitted_endpoint, permitted_model
from descant_wire.errors import ApiError


def call_with(world: World, authorization: str | None, address: str | None = "10.0.0.1", pepper: str = PEPPER):
    header = None if authorization is None else authorization.encode("latin-1")
    return authenticate(header, address, world.current, pepper)


def refusal(world: World, authorization: str | None, address: str | None = "10.0.0.1") -> ApiError:
    with pytest.raises(ApiError) as caught:
        call_with(world, authorization, address)
    return caught.value


def test_a_good_key_is_its_key_and_team() -> None:
    world = World()
    team = world.add_team()
    text = world.add_key(team)
    caller = call_with(world, f"Bearer {text}")
    assert caller.team == team
    assert caller.key.public_id == keys.parse(text).public_id


def test_the_scheme_is_case_insensitive() -> None:
    world = World()
    assert call_with(world, f"bearer {world.add_key()}")


class CountsLookups(dict):
    lookups = 0

    def get(self, *args):
        self.lookups += 1
        return super().get(*args)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic abc",
        "Bearer sk-123",
        "Bearer dsc_",
        "Bearer dsc_\xff\xfe",
        "Bearer " + "x" * 9000,
    ],
)
def test_a_malformed_key_is_refused_without_a_look_up(authorization: str | None) -> None:
    world = World(keys=CountsLookups())
    error = refusal(world, authorization)
    assert (error.status, error.detail.code) == (401, "invalid_api_key")
    assert world.keys.lookups == 0


def test_a_mistyped_key_is_refused_without_a_look_up() -> None:
    world = World(keys=CountsLookups())
    text = world.add_key()
    world.keys.lookups = 0
    wrong = text[:-8] + ("A" if text[-8] != "A" else "B") + text[-7:]
    assert refusal(world, f"Bearer {wrong}").status == 401
    assert world.keys.lookups == 0


def test_an_unknown_id_and_a_wrong_secret_get_the_same_answer() -> None:
    world = World()
    known = keys.parse(world.add_key())
    wrong_secret = keys.ParsedKey(public_id=known.public_id, secret=keys.generate().secret)
    unknown = refusal(world, f"Bearer {keys.generate().text}")
    assert refusal(world, f"Bearer {wrong_secret.text}").body == unknown.body
    assert unknown.status == 401


def test_another_pepper_opens_nothing() -> None:
    world = World()
    text = world.add_key()
    with pytest.raises(ApiError):
        call_with(world, f"Bearer {text}", pepper="q" * 32)


def test_the_refusal_never_quotes_the_key() -> None:
    text = keys.generate().text
    assert text[10:] not in refusal(World(), f"Bearer {text}").body.decode()


def test_revoked_and_expired_keys_are_refused() -> None:
    world = World()
    now = datetime.now(UTC)
    revoked = world.add_key(revoked_at=now)
    expired = world.add_key(expires_at=now - timedelta(seconds=1))
    fresh = world.add_key(expires_at=now + timedelta(hours=1))
    assert "revoked" in refusal(world, f"Bearer {revoked}").detail.message
    assert "expired" in refusal(world, f"Bearer {expired}").detail.message
    assert call_with(world, f"Bearer {fresh}")


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("2001:db8::1", True),
        ("10.2.0.1", False),
        ("2001:db9::1", False),
        ("not an address", False),
        (None, False),
    ],
)
def test_a_key_works_from_its_addresses_only(address: str | None, is_allowed: bool) -> None:
    world = World()
    text = world.add_key(ip_ranges=(ip_network("10.1.0.0/16"), ip_network("2001:db8::/32")))
    if is_allowed:
        assert call_with(world, f"Bearer {text}", address)
    else:
        assert refusal(world, f"Bearer {text}", address).status == 403


def test_every_secret_of_a_key_works() -> None:
    world = World()
    first = keys.parse(world.add_key())
    second = keys.ParsedKey(public_id=first.public_id, secret=keys.generate().secret)
    key = world.keys[first.public_id]
    hmacs = (*key.secret_hmacs, keys.hmac_secret(PEPPER, second.secret))
    world.keys[first.public_id] = type(key)(
        **{f: getattr(key, f) for f in key.__struct_fields__} | {"secret_hmacs": hmacs}
    )
    assert call_with(world, f"Bearer {first.text}")
    assert call_with(world, f"Bearer {second.text}")


def test_models_are_404_when_unknown_and_403_when_not_allowed() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.add_model(name)
    team = world.add_team(allowed_models=frozenset({"a", "b"}))
    caller = call_with(world, f"Bearer {world.add_key(team, allowed_models=frozenset({'a', 'c'}))}")
    assert permitted_model(caller, "a", world.current).name == "a"
    for name, status, code in (
        ("b", 403, "model_not_allowed"),
        ("c", 403, "model_not_allowed"),
        ("d", 404, "model_not_found"),
    ):
        with pytest.raises(ApiError) as caught:
            permitted_model(caller, name, world.current)
        assert (caught.value.status, caught.value.detail.code, caught.value.detail.param) == (status, code, "model")
    assert [name for name in "abc" if caller.may_use(world.current.models[name])] == ["a"]


def caller_of(world: World, **fields: object) -> Caller:
    return call_with(world, f"Bearer {world.add_key(**fields)}")


@pytest.mark.parametrize(
    ("scopes", "path", "is_open"),
    [
        (None, "/v1/chat/completions", True),
        (None, "/v1/whatever", True),
        ({"chat"}, "/v1/chat/completions", True),
        ({"chat"}, "/v1/completions", False),
        ({"models"}, "/v1/models/org/name", True),
        ({"chat", "models"}, "/v1/whatever", False),
        (set(), "/v1/models", False),
    ],
)
def test_a_key_opens_the_endpoints_of_its_scopes(scopes: set | None, path: str, is_open: bool) -> None:
    caller = caller_of(World(), scopes=None if scopes is None else frozenset(scopes))
    if is_open:
        permitted_endpoint(caller, path)
        return
    with pytest.raises(ApiError) as caught:
        permitted_endpoint(caller, path)
    assert (caught.value.status, caught.value.detail.code) == (403, "scope_missing")


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (AllowList(), "base sql tickets"),
        (AllowList(models=frozenset({"base"})), "base"),
        (AllowList(models=frozenset({"base", "sql"})), "base sql"),
        (AllowList(models=frozenset({"base"}), adapters=frozenset({"sql"})), "base sql"),
        (AllowList(adapters=frozenset()), "base"),
        (AllowList(models=frozenset(), adapters=frozenset({"tickets"})), "tickets"),
    ],
)
def test_adapters_have_a_list_of_their_own(allowed: AllowList, expected: str) -> None:
    world = World()
    world.add_model("base")
    for name in ("sql", "tickets"):
        world.add_model(name, parent="base")
    caller = caller_of(world, allowed=allowed)
    assert [name for name, model in world.current.models.items() if caller.may_use(model)] == expected.split()


def test_every_level_narrows() -> None:
    world = World()
    for name in "abcd":
        world.add_model(name)
    levels = [AllowList(models=frozenset(names)) for names in ("abc", "abd", "acd", "bcd")]
    caller = caller_of(world)
    organization = Organization(id=uuid4(), name="o", allowed=levels[0])
    project = Project(id=uuid4(), team_id=caller.team.id, name="p", allowed=levels[2])
    narrow = Caller(
        replace(caller.key, allowed=levels[3]), replace(caller.team, allowed=levels[1]), organization, project
    )
    found = [narrow.forbidding_level(world.current.models[name]) for name in "abcd"]
    assert found == ["key", "project", "team", "organization"]
