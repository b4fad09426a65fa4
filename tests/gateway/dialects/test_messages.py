"""Anthropic's Messages API in front of any model: its own client, and its documented shapes by hand."""

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import httpx
import pytest
from pydantic import BaseModel
from tests.gateway.gateway_under_test import Running, World, bearer, eventually, running_gateway
from tests.gateway.scripted_upstream import Script, ScriptedUpstream
from tests.gateway.upstream import running

from descant_gateway.dialects.message_request import prompt_only
from descant_wire.anthropic import CountTokensRequest, InputMessage
from descant_wire.sse import SseDecoder

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

TOOL = {"name": "weather", "description": "The weather.", "input_schema": {"type": "object", "properties": {}}}
ASK = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with running(ScriptedUpstream()) as upstream:
        yield upstream


@pytest.fixture
def key(world: World) -> str:
    return world.add_key()


@pytest.fixture
async def client(gateway: Running, key: str) -> "AsyncIterator[AsyncAnthropic]":
    async with anthropic_client(gateway, key) as client:
        yield client


def anthropic_client(gateway: Running, key: str) -> "AsyncAnthropic":
    from anthropic import AsyncAnthropic  # two seconds, for the process that runs these tests only

    return AsyncAnthropic(base_url=gateway.url, api_key=key, max_retries=0, timeout=10)


async def test_a_message_in_its_documented_shape(gateway: Running, upstream: ScriptedUpstream, key: str) -> None:
    reply = await gateway.client.post("/v1/messages", headers={"x-api-key": key}, json=ASK | {"system": "Be brief."})
    message = reply.json()
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Hello there"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 7,
            "output_tokens": 6,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
        },
    }
    received = upstream.received[-1]
    assert received.path == "/v1/chat/completions"
    assert received.json == {
        "model": "m",
        "max_tokens": 50,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    }
    assert key not in str(received.headers)


async def test_the_ledger_knows_the_endpoint_and_the_true_usage(world: World, client: "AsyncAnthropic") -> None:
    await client.messages.create(**ASK)
    async with client.messages.stream(**ASK) as stream:
        await stream.until_done()
    for record in world.records:
        assert (record.endpoint, record.outcome.value) == ("/v1/messages", "completed")
        assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (11, 4, 6)
        assert not record.estimated
    assert [record.stream for record in world.records] == [False, True]


def shown(block: BaseModel) -> dict:
    return block.model_dump(exclude={"parsed_output"})


SCRIPTS = {
    "text": Script(),
    "thinking": Script(reasoning="Let me think about it.", content="42"),
    "tools": Script(
        content="I look.",
        calls=[("call_1", "weather", '{"city": "Oslo"}'), ("call_2", "weather", "{}")],
        finish_reason="tool_calls",
    ),
    "stop sequence": Script(stop_reason="END"),
    "cut": Script(content=None, calls=[("call_1", "weather", '{"city": "Os')], finish_reason="length"),
    "nothing": Script(content=None),
}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_streaming_and_not_agree(client: "AsyncAnthropic", upstream: ScriptedUpstream, name: str) -> None:
    upstream.script = SCRIPTS[name]
    whole = await client.messages.create(**ASK, tools=[TOOL])
    async with client.messages.stream(**ASK, tools=[TOOL]) as stream:
        streamed = await stream.get_final_message()
    assert [block.type for block in streamed.content] == [block.type for block in whole.content]
    if name != "cut":  # of which the client keeps what it can read
        assert [shown(block) for block in streamed.content] == [shown(block) for block in whole.content]
    assert (streamed.stop_reason, streamed.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert streamed.usage.input_tokens == whole.usage.input_tokens
    assert streamed.usage.cache_read_input_tokens == whole.usage.cache_read_input_tokens


async def test_calls_thoughts_and_stop_reasons(client: "AsyncAnthropic", upstream: ScriptedUpstream) -> None:
    upstream.script = SCRIPTS["tools"]
    message = await client.messages.create(**ASK, tools=[TOOL])
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert (message.content[1].id, message.content[1].input) == ("call_1", {"city": "Oslo"})
    assert message.stop_reason == "tool_use"
    upstream.script = SCRIPTS["thinking"]
    message = await client.messages.create(**ASK)
    assert (message.content[0].thinking, message.content[1].text) == ("Let me think about it.", "42")
    upstream.script = SCRIPTS["stop sequence"]
    message = await client.messages.create(**ASK, stop_sequences=["END"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
    assert upstream.received[-1].json["stop"] == ["END"]


async def test_the_events_come_in_the_documented_order(gateway: Running, upstream: ScriptedUpstream, key: str) -> None:
    upstream.script = SCRIPTS["tools"]
    reply = await gateway.client.post("/v1/messages", headers={"x-api-key": key}, json=ASK | {"stream": True})
    events = SseDecoder().feed(reply.content)
    assert all(json.loads(event.data)["type"] == event.event.decode() for event in events)
    names = [event.event.decode() for event in events]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    assert [name for name in names if name.startswith("content_block_st")] == [
        "content_block_start",
        "content_block_stop",
    ] * 3
    assert b"[DONE]" not in reply.content


async def test_a_whole_conversation_with_tools_is_translated(
    client: "AsyncAnthropic", upstream: ScriptedUpstream
) -> None:
    await client.messages.create(
        model="m",
        max_tokens=5,
        system=[
            {"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "kind."},
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "Snow"}]},
                    {"type": "text", "text": "Well?"},
                ],
            },
        ],
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 3},
        metadata={"user_id": "u"},
    )
    sent = upstream.received[-1].json
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    assert sent["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Snow"},
        {"role": "user", "content": [{"type": "text", "text": "Well?"}]},
    ]
    function = {"name": "weather", "description": "The weather.", "parameters": TOOL["input_schema"]}
    assert sent["tools"] == [{"type": "function", "function": function}]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert sent["parallel_tool_calls"] is False
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["user"]) == (0.5, 0.9, 3, "u")


CALL = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}


@pytest.mark.parametrize(
    ("content", "goes_on"),
    [("It is", True), ([{"type": "text", "text": "It is"}], True), ([CALL], False), ("", False)],
)
async def test_an_answer_goes_on_from_its_beginning(
    gateway: Running, upstream: ScriptedUpstream, key: str, content: str | list[dict], goes_on: bool
) -> None:
    messages = [*ASK["messages"], {"role": "assistant", "content": content}]
    reply = await gateway.client.post("/v1/messages", headers={"x-api-key": key}, json=ASK | {"messages": messages})
    assert reply.status_code == 200
    said = upstream.received[-1].json
    wanted = {"continue_final_message": True, "add_generation_prompt": False} if goes_on else {}
    assert {name: said[name] for name in ("continue_final_message", "add_generation_prompt") if name in said} == wanted


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "image"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"nonsense": 1}, "nonsense"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [], "tool_choice": {"type": "tool", "name": "weather"}}, "tool_choice"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(gateway: Running, key: str, fields: dict, named: str) -> None:
    reply = await gateway.client.post("/v1/messages", headers={"x-api-key": key}, json=ASK | fields)
    assert reply.status_code == 400
    fault = reply.json()
    assert (fault["type"], fault["error"]["type"]) == ("error", "invalid_request_error")
    assert named in fault["error"]["message"]


async def test_errors_are_anthropic_s(gateway: Running, world: World, upstream: ScriptedUpstream, key: str) -> None:
    from anthropic import APIStatusError, AuthenticationError, NotFoundError

    with pytest.raises(AuthenticationError) as refused:
        await anthropic_client(gateway, "wrong").messages.create(**ASK)
    assert refused.value.body["error"]["type"] == "authentication_error"
    client = anthropic_client(gateway, key)
    with pytest.raises(NotFoundError):
        await client.messages.create(**ASK | {"model": "unknown"})
    upstream.status, upstream.error_body = 400, b'{"error":{"message":"too hot","type":"x","param":"temperature"}}'
    with pytest.raises(APIStatusError) as refused:
        await client.messages.create(**ASK)
    assert refused.value.body["error"] == {"type": "invalid_request_error", "message": "temperature: too hot"}
    upstream.status = 500
    with pytest.raises(APIStatusError) as refused:
        await client.messages.create(**ASK)
    assert (refused.value.status_code, refused.value.body["error"]["type"]) == (502, "api_error")


async def test_answers_and_errors_name_their_request(client: "AsyncAnthropic") -> None:
    from anthropic import NotFoundError

    answered = await client.messages.create(**ASK)
    assert answered._request_id
    with pytest.raises(NotFoundError) as refused:
        await client.messages.create(**ASK | {"model": "unknown"})
    assert refused.value.request_id
    assert refused.value.request_id == refused.value.response.headers["x-request-id"]


async def test_a_bearer_works_too(gateway: Running, key: str) -> None:
    reply = await gateway.client.post("/v1/messages", headers=bearer(key), json=ASK)
    assert reply.status_code == 200


async def test_a_stream_that_breaks_ends_with_an_error_event(
    gateway: Running, upstream: ScriptedUpstream, world: World, key: str
) -> None:
    upstream.dies_after = 2
    async with gateway.client.stream("POST", "/v1/messages", headers=bearer(key), json=ASK | {"stream": True}) as reply:
        events = SseDecoder().feed(await reply.aread())
    assert events[-1].event == b"error"
    assert json.loads(events[-1].data)["error"]["type"] == "api_error"
    assert world.records[-1].outcome.value == "upstream_failed"


async def test_a_client_that_leaves_cancels_upstream(gateway: Running, upstream: ScriptedUpstream, key: str) -> None:
    upstream.delay_s = 0.2
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        async with client.stream("POST", "/v1/messages", headers=bearer(key), json=ASK | {"stream": True}) as reply:
            async for _ in reply.aiter_bytes():
                break
    await eventually(lambda: upstream.num_cancelled == 1)


class CountingUpstream(ScriptedUpstream):
    def whole(self) -> bytes:
        return json.dumps({"count": 21, "max_model_len": 64, "tokens": [1]}).encode()


async def test_a_prompts_tokens_are_counted_by_the_backends_tokenizer(world: World, valkey_url: str, key: str) -> None:
    async with running(CountingUpstream(name="counting")) as upstream:
        world.add_model("counted", upstream.backend)
        async with running_gateway(world, valkey_url) as gateway:
            client = anthropic_client(gateway, key)
            ask = {"model": "counted", "system": "Be brief.", "messages": ASK["messages"]}
            counted = await client.messages.count_tokens(**ask, tools=[TOOL])
            without = await client.messages.count_tokens(**ask, tools=[TOOL], tool_choice={"type": "none"})
            await client.close()
    assert counted.input_tokens == without.input_tokens == 21
    first, second = upstream.received
    assert first.path == "/tokenize"
    assert [message["role"] for message in first.json["messages"]] == ["system", "user"]
    assert first.json["tools"][0]["function"]["name"] == "weather"
    assert "tools" not in second.json
    assert not {"max_tokens", "stream"} & first.json.keys()


def test_the_beginning_of_an_answer_is_counted_as_it_is_sent() -> None:
    messages = [InputMessage(role="user", content="Hi"), InputMessage(role="assistant", content="It is")]
    said = prompt_only(CountTokensRequest(model="m", messages=messages))
    assert (said["continue_final_message"], said["add_generation_prompt"]) == (True, False)


async def test_what_can_not_be_counted_is_refused_by_name(gateway: Running, key: str) -> None:
    headers = {"x-api-key": key}
    path = "/v1/messages/count_tokens"
    image = {"role": "user", "content": [{"type": "image", "source": {}}]}
    reply = await gateway.client.post(path, headers=headers, json={"model": "m", "messages": [image]})
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "image" in reply.json()["error"]["message"]
    reply = await gateway.client.post(path, headers=headers, json={"model": "m", "messages": [], "max_tokens": 3})
    assert "max_tokens" in reply.json()["error"]["message"]
