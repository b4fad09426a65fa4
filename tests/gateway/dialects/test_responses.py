"""OpenAI's Responses API: the official client, a whole gateway on PostgreSQL, a backend of chat completions."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from openai import AsyncOpenAI, BadRequestError, NotFoundError, RateLimitError
from openai.types.responses import Response
from pydantic import BaseModel
from tests.gateway.batches.test_batches import Stage, begin, ended, results, staged
from tests.gateway.scripted_upstream import Script

from descant_gateway.background import body_now
from descant_gateway.store.responses import StoredResponse

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
CALL = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
SCRIPTS = {
    "text": Script(),
    "thinking": Script(reasoning="Let me think about it.", content="42", reasoning_tokens=3),
    "tools": Script(
        content="I look.",
        calls=[("call_1", "weather", '{"city": "Oslo"}'), ("call_2", "weather", "{}")],
        finish_reason="tool_calls",
    ),
    "cut": Script(finish_reason="length"),
    "nothing": Script(content=None),
}


class Answer(BaseModel):
    city: str
    degrees: int


@pytest.fixture
async def stage(postgres_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(postgres_url, valkey_url, tmp_path) as stage:
        yield stage


@pytest.fixture
async def client(stage: Stage) -> AsyncOpenAI:
    return await stage.client()


def shown(response: Response) -> dict[str, Any]:
    """Without what differs from response to response."""

    def strip(value: Any) -> Any:
        if isinstance(value, list):
            return [strip(each) for each in value]
        if isinstance(value, dict):
            return {name: strip(each) for name, each in value.items() if name not in ("id", "created_at", "parsed")}
        return value

    return strip(response.to_dict())


async def test_a_response_is_made_read_and_deleted(client: AsyncOpenAI, stage: Stage) -> None:
    made = await client.responses.create(model="m", input="Hi", instructions="Be brief.", metadata={"a": "b"})
    assert (made.status, made.output_text, made.object) == ("completed", "Hello there", "response")
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (11, 6, 17)
    assert made.usage.input_tokens_details.cached_tokens == 4
    sent = stage.upstream.received[-1]
    assert sent.path == "/v1/chat/completions"
    assert sent.json["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert await client.responses.retrieve(made.id) == made
    items = [item async for item in client.responses.input_items.list(made.id)]
    assert [(item.type, item.content[0].text) for item in items] == [("message", "Hi")]  # type: ignore[union-attr]
    async with asyncio.timeout(10):
        while not (rows := await stage.ledger()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    row = rows[0]
    assert (row["endpoint"], row["prompt_tokens"], row["cached_tokens"]) == ("/v1/responses", 11, 4)
    with pytest.raises(NotFoundError):
        await (await stage.client()).responses.retrieve(made.id)
    with pytest.raises(BadRequestError, match="background"):
        await client.responses.cancel(made.id)
    await client.responses.delete(made.id)
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(made.id)


@pytest.mark.parametrize("name", SCRIPTS)
async def test_streaming_and_not_agree(client: AsyncOpenAI, stage: Stage, name: str) -> None:
    stage.upstream.script = SCRIPTS[name]
    whole = await client.responses.create(model="m", input="Hi", tools=[TOOL])
    events = [event async for event in await client.responses.create(model="m", input="Hi", tools=[TOOL], stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == ("response.incomplete" if name == "cut" else "response.completed")
    assert shown(events[-1].response) == shown(whole)
    assert await client.responses.retrieve(events[-1].response.id) == events[-1].response


async def test_the_client_s_own_stream_adds_up(client: AsyncOpenAI, stage: Stage) -> None:
    stage.upstream.script = SCRIPTS["tools"]
    async with client.responses.stream(model="m", input="Hi", tools=[TOOL]) as stream:
        types = {event.type async for event in stream}
        final = await stream.get_final_response()
    assert {"response.output_text.delta", "response.function_call_arguments.delta"} <= types
    assert [item.type for item in final.output] == ["message", "function_call", "function_call"]
    assert final.output[1].arguments == '{"city": "Oslo"}'  # type: ignore[union-attr]
    assert final.output_text == "I look."


async def test_thoughts_are_an_item_and_counted(client: AsyncOpenAI, stage: Stage) -> None:
    stage.upstream.script = SCRIPTS["thinking"]
    made = await client.responses.create(model="m", input="Hi", reasoning={"effort": "none"})
    assert [item.type for item in made.output] == ["reasoning", "message"]
    assert made.output[0].content[0].text == "Let me think about it."  # type: ignore[union-attr, index]
    assert made.usage is not None
    assert made.usage.output_tokens_details.reasoning_tokens == 3
    assert stage.upstream.received[-1].json["reasoning_effort"] == "none"


async def test_parse_gives_an_object(client: AsyncOpenAI, stage: Stage) -> None:
    stage.upstream.script = Script(content='{"city": "Oslo", "degrees": -3}')
    parsed = await client.responses.parse(model="m", input="Hi", text_format=Answer)
    assert parsed.output_parsed == Answer(city="Oslo", degrees=-3)
    form = stage.upstream.received[-1].json["response_format"]
    assert (form["type"], form["json_schema"]["name"], form["json_schema"]["strict"]) == ("json_schema", "Answer", True)
    async with client.responses.stream(model="m", input="Hi", text_format=Answer) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed == Answer(city="Oslo", degrees=-3)


async def test_a_conversation_goes_on(client: AsyncOpenAI, stage: Stage) -> None:
    stage.upstream.script = SCRIPTS["tools"]
    first = await client.responses.create(model="m", input="Weather?", tools=[TOOL], instructions="Only now.")
    stage.upstream.script = Script(content="Snow.")
    outputs: Any = [
        {"type": "function_call_output", "call_id": "call_1", "output": "snow"},
        {"type": "function_call_output", "call_id": "call_2", "output": "sun"},
    ]
    second = await client.responses.create(model="m", input=outputs, previous_response_id=first.id, tools=[TOOL])
    third = await client.responses.create(model="m", input="Sure?", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
    ]
    assert stage.upstream.received[-1].json["messages"] == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "snow"},
        {"role": "tool", "tool_call_id": "call_2", "content": "sun"},
        {"role": "assistant", "content": "Snow."},
        {"role": "user", "content": "Sure?"},
    ]
    await client.responses.delete(first.id)
    with pytest.raises(BadRequestError) as refused:
        await client.responses.create(model="m", input="And?", previous_response_id=second.id)
    assert refused.value.code == "previous_response_not_found"
    with pytest.raises(BadRequestError):
        await (await stage.client()).responses.create(model="m", input="x", previous_response_id=third.id)


async def test_what_is_not_to_be_stored_is_not(client: AsyncOpenAI, stage: Stage) -> None:
    made = await client.responses.create(model="m", input="Hi", store=False)
    assert made.to_dict()["store"] is False
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(made.id)
    assert await stage.sql("SELECT FROM responses") == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True, "store": False}, "store"),
        ({"background": True, "stream": True}, "stream"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"input": ""}, "input"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input[0].name"),
        ({"input": [CALL | {"arguments": None}]}, "input[0].arguments"),
        ({"input": [CALL | {"arguments": "{bad"}]}, "input[0].arguments"),
        ({"input": [CALL | {"arguments": "[]"}]}, "input[0].arguments"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, "response_format"),
        ({"extra_body": {"messages": []}}, "messages"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "weather"}}, "tool_choice"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(client: AsyncOpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        await client.responses.create(**{"model": "m", "input": "Hi"} | fields)
    assert refused.value.param == param
    assert f"`{param}`" in refused.value.message


async def test_a_refusal_of_the_backend_s_is_in_the_words_of_responses(client: AsyncOpenAI, stage: Stage) -> None:
    stage.upstream.status = 400
    stage.upstream.error_body = b'{"error":{"message":"`messages[0]` is odd.","type":"x","param":"messages[0]"}}'
    with pytest.raises(BadRequestError, match="`input` is odd") as refused:
        await client.responses.create(model="m", input="Hi")
    assert refused.value.param == "input"


async def test_items_are_numbered_as_they_were_sent(client: AsyncOpenAI) -> None:
    first = await client.responses.create(model="m", input="Hi")
    items: Any = [{"role": "user", "content": "And?"}, {"type": "item_reference", "id": "x"}]
    with pytest.raises(BadRequestError) as refused:
        await client.responses.create(model="m", input=items, previous_response_id=first.id)
    assert refused.value.param == "input[1]"


async def until_done(client: AsyncOpenAI, response_id: str) -> Response:
    async with asyncio.timeout(20):
        while (response := await client.responses.retrieve(response_id)).status in ("queued", "in_progress"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return response


async def test_a_response_is_made_in_the_background(client: AsyncOpenAI, stage: Stage) -> None:
    stage.upstream.delay_s = 0.3
    begun = await client.responses.create(model="m", input="Hi", background=True)
    assert (begun.status, begun.background, begun.output) == ("queued", True, [])
    with pytest.raises(BadRequestError, match="conversation"):
        await client.responses.create(model="m", input="And?", previous_response_id=begun.id)
    done = await until_done(client, begun.id)
    assert (done.status, done.output_text, done.background) == ("completed", "Hello there", True)
    assert done.usage is not None
    assert done.usage.total_tokens == 17
    assert await client.responses.cancel(begun.id) == done
    items = [item async for item in client.responses.input_items.list(begun.id)]
    assert len(items) == 1
    after = await client.responses.create(model="m", input="And?", previous_response_id=begun.id)
    assert after.output_text == "Hello there"
    async with asyncio.timeout(10):
        while len(rows := await stage.ledger()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert {row["endpoint"] for row in rows} == {"/v1/responses"}


async def test_a_response_in_the_background_can_be_cancelled(client: AsyncOpenAI, stage: Stage) -> None:
    stage.upstream.delay_s = 30
    begun = await client.responses.create(model="m", input="Hi", background=True)
    async with asyncio.timeout(10):
        while not stage.upstream.num_running:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await client.responses.cancel(begun.id)).status == "cancelled"
    async with asyncio.timeout(10):
        while not stage.upstream.num_cancelled:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await client.responses.retrieve(begun.id)).status == "cancelled"


async def test_a_failure_in_the_background_is_told_by_the_response(client: AsyncOpenAI, stage: Stage) -> None:
    stage.upstream.status = 400
    begun = await client.responses.create(model="m", input="Hi", background=True)
    done = await until_done(client, begun.id)
    assert done.status == "failed"
    assert done.error is not None
    assert (done.error.code, done.error.message) == ("x", "no")


async def test_what_failed_in_the_background_keeps_no_input(client: AsyncOpenAI, stage: Stage) -> None:
    stage.upstream.status = 400
    begun = await client.responses.create(model="m", input="Hi " * 10_000, background=True)
    await until_done(client, begun.id)
    ((size,),) = await stage.sql("SELECT length(input) FROM responses")
    assert size < 100


async def test_one_team_has_so_many_in_the_background_and_no_more(
    client: AsyncOpenAI, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("descant_gateway.background.MAX_RUNNING_OF_TEAM", 2)
    stage.upstream.delay_s = 30
    begun = [await client.responses.create(model="m", input="Hi", background=True) for _ in range(2)]
    with pytest.raises(RateLimitError, match="of this team"):
        await client.with_options(max_retries=0).responses.create(model="m", input="Hi", background=True)
    await client.responses.cancel(begun[0].id)
    async with asyncio.timeout(10):
        while len(begun) < 3:
            with contextlib.suppress(RateLimitError):
                begun.append(await client.responses.create(model="m", input="Hi", background=True))
    for one in begun[1:]:
        await client.responses.cancel(one.id)


async def test_an_unknown_model_is_refused_before_anything_is_begun(client: AsyncOpenAI, stage: Stage) -> None:
    with pytest.raises(NotFoundError):
        await client.responses.create(model="nobody", input="Hi", background=True)
    assert await stage.sql("SELECT FROM responses") == []


def test_what_a_gateway_that_died_was_making_has_failed() -> None:
    now = datetime.now(UTC)
    body = json.dumps({"id": "resp_1", "status": "queued", "background": True}).encode()
    times = {"created_at": now, "expires_at": now + timedelta(days=1)}
    stored = StoredResponse(id="resp_1", team_id=uuid.uuid4(), previous_id=None, input=b"[]", body=body, **times)
    assert body_now(replace(stored, lease_until=now + timedelta(seconds=60))) == body
    lost = json.loads(body_now(replace(stored, lease_until=now - timedelta(seconds=1))))
    assert (lost["status"], lost["error"]["code"]) == ("failed", "server_error")


async def test_responses_can_be_made_in_a_batch(client: AsyncOpenAI, stage: Stage) -> None:
    row = {"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": {"model": "m", "input": "Hi"}}
    done = await ended(client, (await begin(client, [row], endpoint="/v1/responses")).id)
    (result,) = await results(client, done.output_file_id)
    assert result["response"]["body"]["object"] == "response"
    assert (await client.responses.retrieve(result["response"]["body"]["id"])).output_text == "Hello there"


async def test_a_stream_that_breaks_fails_the_response(client: AsyncOpenAI, stage: Stage) -> None:
    stage.upstream.dies_after = 1
    last = None
    async for event in await client.responses.create(model="m", input="Hi", stream=True):
        last = event
    assert last is not None
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert "broke" in json.dumps(last.response.error.message)
