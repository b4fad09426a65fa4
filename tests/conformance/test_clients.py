"""What the official client makes of answers by itself: parsed objects, helpers for streams, errors by their class."""

from typing import Any, Literal

import httpx
import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI, pydantic_function_tool
from pydantic import BaseModel

from .asking import HELLO
from .form_options import COMPACT
from .stack import MODEL, Stack
from .tool_options import TOOLS, WEATHER, said


class Report(BaseModel):
    ok: bool
    size: Literal["s", "m"]


def chat(**options: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, "seed": 7, "temperature": 0, "logit_bias": COMPACT, **options}


def test_answers_are_parsed_into_classes(stack: Stack) -> None:
    options = chat(response_format=Report, max_completion_tokens=100)
    parsed = stack.openai.chat.completions.parse(**options).choices[0].message.parsed
    assert isinstance(parsed, Report)
    with stack.openai.chat.completions.stream(**options) as events:
        final = events.get_final_completion().choices[0].message.parsed
    assert final == parsed


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_what_was_parsed_can_be_sent_back(stack: Stack) -> None:
    """The client leaves what it read out of an answer in the message, and sends it along."""
    parse = stack.openai.chat.completions.parse
    told = parse(**chat(response_format=Report, max_completion_tokens=100)).choices[0].message
    tool = pydantic_function_tool(Report)
    named = {"type": "function", "function": {"name": "Report"}}
    called = parse(**chat(tools=[tool], tool_choice=named, max_completion_tokens=100)).choices[0].message
    (call,) = called.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Report)
    result = {"role": "tool", "tool_call_id": call.id, "content": "thanks"}
    for messages in ([told], [called, result], [called.model_dump(warnings=False), result]):
        again = chat(messages=[*HELLO, *messages], tools=[tool], max_completion_tokens=1)
        assert stack.openai.chat.completions.create(**again).choices


def test_a_stream_of_a_call_becomes_the_call(stack: Stack) -> None:
    forced = said(WEATHER)
    extra = {"structured_outputs": forced.pop("structured_outputs")}
    options = chat(tools=TOOLS, extra_body=extra, **forced)
    with stack.openai.chat.completions.stream(**options) as events:
        names = [event.name for event in events if event.type == "tool_calls.function.arguments.done"]
        (call,) = events.get_final_completion().choices[0].message.tool_calls or []
    assert names == ["weather"]
    assert call.function.arguments == '{"city": "Oslo"}'


def test_models_are_listed_and_shown(stack: Stack) -> None:
    assert [each.id for each in stack.openai.models.list()] == [MODEL]
    shown = stack.openai.models.retrieve(MODEL)
    assert (shown.id, shown.object) == (MODEL, "model")
    with pytest.raises(NotFoundError):
        stack.openai.models.retrieve("nobody")


def test_errors_have_the_class_and_code_that_openais_have(stack: Stack) -> None:
    stranger = OpenAI(base_url=f"{stack.gateway_url}/v1", api_key="dsc_wrong", max_retries=0, timeout=20)
    with stranger, pytest.raises(AuthenticationError) as unknown:
        stranger.models.list()
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(BadRequestError) as too_long:
        stack.chats.create(messages=[{"role": "user", "content": "x" * 4000}])
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(BadRequestError) as unheard_of:
        stack.chats.create(surprise=True)
    assert unheard_of.value.param == "surprise"


def test_answers_name_their_request(stack: Stack) -> None:
    raw = stack.openai.chat.completions.with_raw_response.create(**chat(max_completion_tokens=1))
    assert raw.headers["x-request-id"]
    assert raw.parse()._request_id == raw.headers["x-request-id"]


def test_a_stream_that_is_left_does_not_disturb_the_next(stack: Stack) -> None:
    with stack.openai.chat.completions.create(stream=True, **chat(max_completion_tokens=1500)) as stream:
        assert next(stream).choices
    assert stack.chats.ask().num_tokens == 8


def test_done_is_a_streams_last_event(stack: Stack) -> None:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    body = chat(stream=True, max_completion_tokens=2)
    text = httpx.post(f"{stack.gateway_url}/v1/chat/completions", json=body, headers=headers, trust_env=False).text
    assert text.endswith("data: [DONE]\n\n")
    assert text.count("[DONE]") == 1
