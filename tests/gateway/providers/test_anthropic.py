"""A backend that speaks Anthropic's Messages API, behind OpenAI's chat completions."""

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import openai
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.gateway_under_test import Running, World, running_gateway

from descant_gateway.catalogue.snapshot import Backend, Protocol
from descant_gateway.providers.anthropic import AnthropicProvider
from descant_gateway.providers.anthropic_stream import AnthropicStream
from descant_gateway.request import read_request
from descant_wire.errors import ApiError

CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
USAGE = {"input_tokens": 10, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 2, "output_tokens": 1}


def said(**fields: object) -> dict:
    body = {"model": "claude", "messages": [{"role": "user", "content": "hi"}], **fields}
    return json.loads(AnthropicProvider().body(read_request(CHAT, json.dumps(body).encode()), "claude-x"))


def test_a_plain_request() -> None:
    assert said(temperature=0.5, stop="END", user="u1", stream=True) == {
        "model": "claude-x",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "temperature": 0.5,
        "stream": True,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u1"},
    }
    assert said(max_completion_tokens=7)["max_tokens"] == 7


def test_a_conversation_with_tools_and_an_image() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Really."}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
        {"role": "user", "content": "What is it?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a":1.0}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    sent = said(messages=messages, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert sent["system"] == "Be brief.\n\nReally."
    user, assistant, result = sent["messages"]
    assert user["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "text", "text": "What is it?"},
    ]
    assert assistant["content"] == [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"a": 1.0}}]
    assert result["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sunny"}]}
    ]
    assert sent["tools"] == [{"name": "weather", "input_schema": {"type": "object"}}]
    assert sent["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"n": 2}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"seed": 7}, "seed"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
    ],
)
def test_what_it_has_no_word_for_is_refused(fields: dict, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        said(**fields)
    assert (caught.value.status, caught.value.detail.param) == (400, param)


def test_values_that_ask_for_nothing_are_no_reason_to_refuse() -> None:
    assert "logprobs" not in said(logprobs=False, n=1, presence_penalty=0, logit_bias={}, response_format=None)


def test_an_answer_goes_on_from_its_beginning() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is"}]
    sent = said(messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert sent["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}
    assert "continue_final_message" not in sent


def test_other_endpoints_are_refused() -> None:
    with pytest.raises(ApiError, match="serves /v1/chat/completions only"):
        AnthropicProvider().body(read_request("/v1/embeddings", b'{"model":"m","input":"x"}'), "x")


@dataclass
class Messages:
    """A small Messages API on a socket."""

    received: list[tuple[dict[str, str], dict]] = field(default_factory=list)
    status: int = 200

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.received.append(({name.lower(): value for name, value in request.headers.items()}, body))
        if self.status != 200:
            fault = {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"}
            return web.json_response({"type": "error", "error": fault}, status=self.status)
        if not body.get("stream"):
            return web.json_response(reply())
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await response.write(stream_bytes())
        return response


def reply() -> dict:
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": "It is "},
        {"type": "text", "text": "sunny."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ü"}},
    ]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": "tool_use",
        "usage": USAGE | {"output_tokens": 30},
    }


def stream_bytes() -> bytes:
    events = [
        {"type": "message_start", "message": {"id": "msg_1", "usage": USAGE}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "It is "}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "sünny."}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t1", "name": "weather"},
        },
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"city":'}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '"Ü"}'}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 30}},
        {"type": "message_stop"},
    ]
    return b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode() for event in events
    )


@asynccontextmanager
async def messages_api(api: Messages) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/messages", api.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class Stage:
    api: Messages
    world: World
    gateway: Running
    client: openai.AsyncOpenAI


@pytest.fixture
async def stage(valkey_url: str) -> AsyncIterator[Stage]:
    api, world = Messages(), World()
    async with messages_api(api) as url:
        backend = Backend(name="cloud", base_url=url, api_key="sk-ant", protocol=Protocol.ANTHROPIC)
        world.add_model("claude", backend, upstream_name="claude-x")
        async with running_gateway(world, valkey_url) as gateway:
            client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=world.add_key(), max_retries=0)
            yield Stage(api, world, gateway, client)


async def test_a_whole_reply_reads_like_openai_s(stage: Stage) -> None:
    completion = await stage.client.chat.completions.create(
        model="claude", messages=[{"role": "user", "content": "hi"}], tools=TOOLS
    )
    choice = completion.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("It is sunny.", "tool_calls")
    call = choice.message.tool_calls[0]
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == ("t1", "weather", {"city": "Ü"})
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (17, 30)
    assert completion.usage.prompt_tokens_details.cached_tokens == 5
    headers, body = stage.api.received[0]
    assert (headers["x-api-key"], headers["anthropic-version"]) == ("sk-ant", "2023-06-01")
    assert "authorization" not in headers
    assert body["model"] == "claude-x"
    (record,) = stage.world.records
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (17, 5, 30)


@pytest.mark.parametrize("asks", [True, False])
async def test_a_stream_reads_like_openai_s(stage: Stage, asks: bool) -> None:
    stream = await stage.client.chat.completions.create(
        model="claude",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": asks},
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "It is sünny."
    arguments = "".join(delta.tool_calls[0].function.arguments for delta in deltas if delta.tool_calls)
    assert json.loads(arguments) == {"city": "Ü"}
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == ([47] if asks else [])
    (record,) = stage.world.records
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (17, 5, 30)
    assert not record.estimated


async def test_a_refusal_is_in_openai_s_shape(stage: Stage) -> None:
    stage.api.status = 400
    with pytest.raises(openai.BadRequestError) as caught:
        await stage.client.chat.completions.create(model="claude", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "context_length_exceeded"
    stage.api.status = 401
    with pytest.raises(openai.APIStatusError, match="the gateway's own credentials"):
        await stage.client.chat.completions.create(model="claude", messages=[{"role": "user", "content": "hi"}])


@given(st.lists(st.integers(0, 5000), max_size=30))
def test_a_stream_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    stream = stream_bytes()
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]

    def translate(pieces: list[bytes]) -> list[dict]:
        translator = AnthropicStream("m")
        text = b"".join(translator.feed(piece) for piece in pieces).decode()
        events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
        assert events.pop() == "[DONE]"
        return [json.loads(event) | {"created": 0} for event in events]

    assert translate([stream[start:end] for start, end in itertools.pairwise(edges)]) == translate([stream])
