"""Structured output and tools over a real socket, with OpenAI's own client, on a model of random weights: nothing but
the grammar gives its answers their form."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, Field

from .conftest import Server

pytestmark = pytest.mark.timeout(180)

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"$ref": "#/$defs/unit"}},
    "required": ["city", "unit"],
    "$defs": {"unit": {"enum": ["C", "F"]}},
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Now.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


class Person(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=150)
    mood: Literal["good", "bad"]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=100) as client:
        yield client


def test_pydantic_model_is_parsed(client: OpenAI) -> None:
    completion = client.chat.completions.parse(**ASK, response_format=Person)
    person = completion.choices[0].message.parsed
    assert isinstance(person, Person)
    assert completion.choices[0].finish_reason == "stop"


def test_stream_gives_the_same(client: OpenAI) -> None:
    options = ASK | {"seed": 5, "extra_body": {"structured_outputs": {"json": Person.model_json_schema()}}}
    whole = client.chat.completions.create(**options)
    parts = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**options, stream=True)]
    assert "".join(parts) == whole.choices[0].message.content
    Person.model_validate_json("".join(parts))


@pytest.mark.parametrize(
    ("demand", "pattern"),
    [
        ({"guided_regex": "[0-9]{3}-[a-z]{2}"}, "[0-9]{3}-[a-z]{2}"),
        ({"guided_choice": ["red", "blue"]}, "red|blue"),
        ({"guided_grammar": 'root ::= "ab" | "cd"'}, "ab|cd"),
        ({"guided_json": {"enum": ["x", 1]}}, '"x"|1'),
        ({"structured_outputs": {"regex": "[a-f]{9}"}}, "[a-f]{9}"),
        ({"structured_outputs": {"choice": ["ja", "nein"]}}, "ja|nein"),
        ({"structured_outputs": {"grammar": 'start: "a" "b"'}}, "ab"),
        ({"structured_outputs": {"json": '{"const": true}'}}, "true"),
        (
            {
                "response_format": {
                    "type": "structural_tag",
                    "format": {
                        "type": "tag",
                        "begin": "<n>",
                        "content": {"type": "json_schema", "json_schema": {"enum": [1, 2]}},
                        "end": "</n>",
                    },
                }
            },
            "<n>[12]</n>",
        ),
    ],
)
def test_every_kind_of_demand_is_met_by_both_endpoints(client: OpenAI, demand: Any, pattern: str) -> None:
    chat = client.chat.completions.create(**ASK, extra_body=demand)
    assert re.fullmatch(pattern, chat.choices[0].message.content or "")
    text = client.completions.create(model="tiny", prompt="x", max_tokens=99, extra_body=demand)
    assert re.fullmatch(pattern, text.choices[0].text)


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_required_calls_parse_and_validate_streaming_and_not(client: OpenAI, choice: Any) -> None:
    options = ASK | {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}

    def ask(seed: int) -> None:
        message = client.chat.completions.create(**options, seed=seed).choices[0]
        assert message.finish_reason == "tool_calls"
        assert message.message.content is None
        (call,) = message.message.tool_calls or []
        streamed = streamed_calls(client, options | {"seed": seed})
        assert streamed == [(call.function.name, call.function.arguments)]
        arguments = json.loads(call.function.arguments)
        assert arguments == {} if call.function.name == "now" else arguments["unit"] in ("C", "F")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(6)))


def streamed_calls(client: OpenAI, options: dict[str, Any]) -> list[tuple[str, str]]:
    """Put together as clients do: id and name come once, arguments in pieces."""
    names: dict[int, str] = {}
    pieces: dict[int, list[str]] = {}
    finish_reason = None
    for chunk in client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            finish_reason = choice.finish_reason or finish_reason
            for call in choice.delta.tool_calls or []:
                if call.id is not None:
                    assert call.index not in names
                    names[call.index] = call.function.name
                pieces.setdefault(call.index, []).append(call.function.arguments or "")
    assert finish_reason == "tool_calls"
    assert all(len(each) > 2 for each in pieces.values())
    return [(name, "".join(pieces[index])) for index, name in names.items()]


class Named(BaseModel):
    """Looks like a call, but for its name."""

    name: str = Field(max_length=3)


def test_content_keeps_to_its_schema_or_is_a_call(client: OpenAI) -> None:
    """The first token decides: a list of calls, or the schema's object."""
    schema = {"name": "named", "schema": Named.model_json_schema()}
    ask = ASK | {"tools": TOOLS, "response_format": {"type": "json_schema", "json_schema": schema}, "seed": 1}
    content = client.chat.completions.create(**ask, logit_bias=bias(client, "{", "[")).choices[0]
    Named.model_validate_json(content.message.content or "")
    assert (content.finish_reason, content.message.tool_calls) == ("stop", None)
    ask |= {"logit_bias": bias(client, "[", "{"), "parallel_tool_calls": False}
    call = client.chat.completions.create(**ask).choices[0]
    assert call.finish_reason == "tool_calls"
    assert call.message.content is None
    assert call.message.tool_calls is not None
    assert call.message.tool_calls[0].function.name in ("now", "get_weather")


def test_content_that_keeps_to_a_schema_streams_beside_tools(client: OpenAI) -> None:
    ask = ASK | {"tools": TOOLS, "extra_body": {"guided_json": Named.model_json_schema()}, "seed": 3}
    ask |= {"logit_bias": bias(client, "{", "[")}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    parts = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**ask, stream=True)]
    assert "".join(part or "" for part in parts) == whole
    assert sum(bool(part) for part in parts) > 2


def bias(client: OpenAI, wanted: str, unwanted: str) -> dict[str, int]:
    base = str(client.base_url).removesuffix("/v1/")
    ids = [httpx.post(f"{base}/tokenize", json={"prompt": text}).json()["tokens"][0] for text in (wanted, unwanted)]
    return {str(ids[0]): 60, str(ids[1]): -100}


def test_calls_and_their_answers_go_through_the_history(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "CET"}'}}
    history = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
    ]
    answer = client.chat.completions.create(**(ASK | {"messages": history, "tools": TOOLS, "max_tokens": 3}))
    assert answer.usage is not None
    without = client.chat.completions.create(**(ASK | {"messages": history[:1], "max_tokens": 3}))
    assert without.usage is not None
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens + len("12:00") + len('{"zone": "CET"}')


ENDLESS = {"$ref": "#"}
REFUSED = [
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}}},
        "response_format",
        "no finite",
    ),
    ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json", "uniqueItems"),
    ({"guided_regex": "(("}, "guided_regex", "regex"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "give one"),
    ({"guided_choice": []}, "guided_choice", "at least one"),
    ({"guided_choice": ["ja"], "bad_words": ["j"]}, "guided_choice", "left its grammar"),
    ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar", "not defined"),
    ({"tools": [TOOLS[1], TOOLS[1]]}, "tools", "a name of its own"),
    ({"tool_choice": "required"}, "tool_choice", "needs `tools`"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "not among"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": ENDLESS}}], "tool_choice": "required"},
        "tools",
        "no finite",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("demand", "param", "reason"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_impossible_demands_get_a_400_with_the_reason(
    client: OpenAI, demand: Any, param: str | None, reason: str, stream: bool
) -> None:
    with pytest.raises(BadRequestError, match=reason) as refusal:
        client.chat.completions.create(**ASK, stream=stream, extra_body=demand)
    assert refusal.value.body["param"] == param  # type: ignore[index]


def test_others_go_on_while_a_vast_schema_is_refused(client: OpenAI) -> None:
    properties = {f"p{i}": {"type": "string", "pattern": f"^(a|b|c){{1,{i + 500}}}$"} for i in range(3000)}
    vast = {"guided_json": {"type": "object", "properties": properties}}
    with ThreadPoolExecutor(2) as pool:
        hostile = pool.submit(client.chat.completions.create, **(ASK | {"max_tokens": 1}), extra_body=vast)
        gaps, last = [], time.monotonic()
        for _ in client.chat.completions.create(**ASK, stream=True, extra_body={"ignore_eos": True}):
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
        error = hostile.exception(60)
    assert error is None or isinstance(error, BadRequestError)
    assert len(gaps) > 50
    assert max(gaps[1:]) < 5  # a machine full of other tests; alone it is some milliseconds
