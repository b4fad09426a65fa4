"""Which requests belong together."""

import json

from descant_gateway.request import read_request
from descant_gateway.routing.affinity import PREFIX_BYTES, Affinity, AffinityKind, affinity_of

LONG = [{"role": "system", "content": "You are a pirate. " * 100}]


def affinity(
    headers: dict[bytes, bytes] | None = None, tenant: str = "t", model: str = "m", **fields: object
) -> Affinity | None:
    request = read_request("/v1/chat/completions", json.dumps({"model": "m", **fields}).encode())
    return affinity_of(headers or {}, request.members, tenant, model)


def question(text: str) -> list[dict[str, str]]:
    return [*LONG, {"role": "user", "content": text}]


def test_a_long_common_beginning_makes_one_group() -> None:
    first, second = affinity(messages=question("a")), affinity(messages=question("something else"))
    assert first is not None
    assert first == second
    assert first.kind is AffinityKind.PREFIX


def test_a_short_prompt_belongs_to_nobody() -> None:
    assert affinity(messages=[{"role": "user", "content": "hi"}]) is None
    assert affinity() is None
    assert affinity(messages=[{"role": "user", "content": "x" * PREFIX_BYTES}]) is not None


def test_a_conversation_keeps_its_group_as_it_grows() -> None:
    turns = question("a")
    assert affinity(messages=turns) == affinity(messages=[*turns, {"role": "assistant", "content": "b"}])


def test_tenants_and_models_are_apart() -> None:
    groups = {
        affinity(messages=LONG),
        affinity(messages=LONG, tenant="u"),
        affinity(messages=LONG, model="n"),
        affinity(messages=LONG, tenant="tm", model=""),
    }
    assert len(groups) == 4


def test_a_session_that_is_named_goes_before_the_prompt() -> None:
    by_header = affinity({b"x-session-id": b"s1"}, messages=question("a"))
    assert by_header == affinity({b"x-session-id": b"s1"}, messages=[{"role": "user", "content": "hi"}])
    assert by_header is not None
    assert by_header.kind is AffinityKind.SESSION
    assert affinity(user="u1") == affinity(user="u1", messages=LONG)
    assert affinity(prompt_cache_key="k", user="u1") == affinity(prompt_cache_key="k", user="u2")
    assert affinity(user=None) is None
    assert affinity(user="") is None
