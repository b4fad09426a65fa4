"""Errors of servers that speak OpenAI's API and refuse in other words: what clients of OpenAI's can read of them."""

import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.gateway_under_test import Running, World, bearer
from tests.gateway.upstream import Upstream

from descant_gateway.providers.openai import OpenAIProvider, is_too_long

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Say hello"}]}
OPENAI = b'{"error": {"message": "no",  "type":"BadRequestError","param":null,"code":400, "vendor": 1.50}}'
LLAMA_CPP = b'{"error":{"code":400,"message":"request (9 tokens) exceeds 8","type":"exceed_context_size_error"}}'
FASTAPI_LIST = b'{"detail":[{"loc":["body","n"],"msg":"Input should be an integer"}]}'

error_reply = OpenAIProvider().error_reply


def told(body: bytes) -> str:
    error = json.loads(error_reply(body))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


@pytest.mark.parametrize("body", [OPENAI, LLAMA_CPP])
def test_an_error_object_passes_byte_for_byte(body: bytes) -> None:
    assert error_reply(body) == body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail":"Model not found"}', "Model not found"),
        (FASTAPI_LIST, '[{"loc":["body","n"],"msg":"Input should be an integer"}]'),
        (b'{"object":"error","message":"too many","code":40001}', "too many"),
        (b'{"error":"model \\"x\\" not found"}', 'model "x" not found'),
        ('{"detail":"größer"}'.encode(), "größer"),
        (b'{"error":null,"detail":null,"message":"last"}', "last"),
    ],
)
def test_other_errors_are_told_in_openai_s_shape(body: bytes, message: str) -> None:
    assert told(body) == message


@pytest.mark.parametrize(
    "body",
    [b"", b"Not Found", b"[]", b'"x"', b"{}", b'{"detail":', b'{"detail":"\xff"}', b'{"detail":' + b"[" * 9000],
)
def test_what_says_nothing_that_can_be_read_passes_as_it_is(body: bytes) -> None:
    assert error_reply(body) == body


@given(st.binary(max_size=200) | st.dictionaries(st.text(), st.text()).map(lambda it: json.dumps(it).encode()))
def test_no_error_of_a_backend_s_is_too_odd(body: bytes) -> None:
    error_reply(body)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (b'{"error":{"message":"long","code":"context_length_exceeded"}}', True),
        (LLAMA_CPP, True),
        (b'{"error":{"message":"This model\'s maximum context length is 4096 tokens."}}', True),
        (OPENAI, False),
    ],
)
def test_a_prompt_that_is_too_long_is_known_by_any_server_s_words(error: bytes, expected: bool) -> None:
    assert is_too_long(error) is expected


async def refused(world: World, gateway: Running, upstream: Upstream, status: int, body: bytes) -> httpx.Response:
    upstream.status, upstream.error_body = status, body
    reply = await gateway.client.post(CHAT, json=BODY, headers=bearer(world.add_key()))
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
    assert int(reply.headers["content-length"]) == len(reply.content)
    return reply


@pytest.mark.parametrize("status", [400, 404, 422, 429])
async def test_the_reply_s_length_is_that_of_what_it_says(
    world: World, gateway: Running, upstream: Upstream, status: int
) -> None:
    for body in (OPENAI, FASTAPI_LIST, b'{"detail":"Model not found"}', b"", b"no JSON"):
        reply = await refused(world, gateway, upstream, status, body)
        assert reply.content == error_reply(body)


@pytest.mark.parametrize("status", [400, 429])
async def test_a_page_of_something_between_is_not_passed_on(
    world: World, gateway: Running, upstream: Upstream, status: int
) -> None:
    upstream.content_type = "text/html"
    reply = await refused(world, gateway, upstream, status, b"<h1>internal-proxy</h1>")
    assert reply.json()["error"]["message"] == f"The backend refused the request (status {status})."
