"""What the gateway reads of a body."""

import json

import pytest

from descant_gateway.request import read_request
from descant_wire.errors import ApiError

CHAT = "/v1/chat/completions"


def read(endpoint: str = CHAT, **fields: object):
    return read_request(endpoint, json.dumps({"model": "m", **fields}).encode())


def test_reads_only_what_it_decides_on() -> None:
    request = read(
        stream=True, max_tokens=9, stream_options={"include_usage": True, "x": 1}, temperature="hot", tools=[{}]
    )
    assert (request.model, request.stream, request.max_tokens, request.include_usage) == ("m", True, 9, True)


def test_max_completion_tokens_is_the_newer_name() -> None:
    assert read(max_tokens=9, max_completion_tokens=3).max_tokens == 3
    assert read().max_tokens is None


def test_nulls_mean_absent() -> None:
    request = read(stream=None, max_tokens=None, stream_options=None, messages=None)
    assert (request.stream, request.max_tokens, request.include_usage) == (False, None, False)


def test_the_estimate_grows_with_the_text_and_counts_token_ids() -> None:
    assert read("/v1/completions", prompt=[5, 6, 7]).estimated_prompt_tokens == 3
    assert read("/v1/completions", prompt="x" * 400).estimated_prompt_tokens == pytest.approx(100, abs=2)
    messages = [{"role": "user", "content": "x" * 400}]
    assert 100 <= read(messages=messages).estimated_prompt_tokens <= 115


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":1}', "model"),
        (b'{"messages":[]}', "model"),
        (b'{"model":"m","stream":"yes"}', "stream"),
        (b'{"model":"m","max_tokens":"9"}', "max_tokens"),
        (b'{"model":"m","max_tokens":-1}', "max_tokens"),
        (b'{"model":"m","max_tokens":1e99}', "max_tokens"),
        (b'{"model":"m","max_tokens":99999999999999999999999}', "max_tokens"),
        (b'{"model":"m","stream_options":{"include_usage":3}}', "stream_options.include_usage"),
        (b'{"model":"m","stream_options":[]}', "stream_options"),
        (b"[" * 100_000, None),
        (b"[]", None),
        (b"null", None),
        (b'"m"', None),
    ],
)
def test_a_wrong_field_is_named(body: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        read_request(CHAT, body)
    assert caught.value.status == 400
    assert caught.value.detail.param == param
    assert caught.value.detail.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "max_choices"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": []}, 1),
        ({"prompt": ["a", "b", "c"]}, 3),
        ({"prompt": [[1], [2, 3]], "n": 4}, 8),
        ({"prompt": "a", "n": 2, "best_of": 5}, 5),
        ({"messages": [{"role": "user", "content": "x"}] * 3}, 1),
    ],
)
def test_every_answer_that_may_come_is_counted(fields: dict[str, object], max_choices: int) -> None:
    assert read(**fields).max_choices == max_choices


def test_a_prompt_with_blanks_is_counted_alike() -> None:
    assert read_request("/v1/completions", b'{"model":"m","prompt": [ 1, 2 ] }').max_choices == 1
    assert read_request("/v1/completions", b'{"model":"m","prompt": [ "a" , "b" ] }').max_choices == 2


@pytest.mark.parametrize("priority", [-5, 1, -0.0, "0", []])
def test_no_client_puts_itself_before_others(priority: object) -> None:
    with pytest.raises(ApiError) as caught:
        read(priority=priority)
    assert (caught.value.status, caught.value.detail.param) == (400, "priority")
    read(priority=0)
    read(priority=None)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{'model':'m'}", b'{"model":"m"} x', b"\xff\xfe", b'{"a":' * 100_000, b'{"model":"m","\xff":1}'],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_request(CHAT, body)
    assert (caught.value.status, caught.value.detail.code) == (400, "invalid_json")
