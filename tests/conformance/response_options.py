"""OpenAI's Responses API, which the gateway says as chat completions and stores."""

import json
import time
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError
from openai.types.responses import Response

from .asking import assert_refused, call
from .form_options import SCHEMA, assert_fits
from .option import Api, OptionTable, Status
from .stack import MODEL, Stack
from .tool_options import tool

RESPONSES = OptionTable(Api.RESPONSES)
TOOLS = [{"type": "function", **tool(name)["function"]} for name in ("weather", "time")]


def create(stack: Stack, **options: Any) -> Any:
    defaults = {"model": MODEL, "input": "Hello", "temperature": 0, "max_output_tokens": 8}
    return call(stack.openai.responses.create, defaults | options)


def ask(stack: Stack, **options: Any) -> Response:
    """The response, which came whole and as typed events alike."""
    whole: Response = create(stack, **options)
    events = list(create(stack, stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    streamed = events[-1].response
    assert whole.usage is not None
    assert streamed.usage is not None
    assert (whole.status, outputs(whole)) == (streamed.status, outputs(streamed))
    assert whole.usage.output_tokens == streamed.usage.output_tokens
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == whole.output_text
    return whole


def outputs(response: Response) -> list[tuple[object, ...]]:
    """Without ids."""
    return [
        (item.type, getattr(item, "name", None), getattr(item, "arguments", None), str(getattr(item, "content", None)))
        for item in (item.model_copy(update={"id": ""}) for item in response.output)
    ]


def input_tokens(response: Response) -> int:
    assert response.usage is not None
    return response.usage.input_tokens


@RESPONSES.works("model")
def model(stack: Stack) -> None:
    assert create(stack).model == MODEL
    with pytest.raises(NotFoundError):
        create(stack, model="nobody")


@RESPONSES.works("input", "A text, or items: messages, calls, their outputs, reasoning. Images and files are refused.")
def response_input(stack: Stack) -> None:
    text = ask(stack)
    message = {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
    assert ask(stack, input=[message]).output_text == text.output_text
    conversation = [
        message,
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "snow"},
    ]
    assert input_tokens(ask(stack, input=conversation)) > input_tokens(text)
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,"}]}
    assert_refused(lambda **options: create(stack, **options), "input", [image])


@RESPONSES.works("instructions", "The system message; not carried over to the next response.")
def instructions(stack: Stack) -> None:
    assert input_tokens(ask(stack, instructions="Be brief.")) == input_tokens(ask(stack)) + len("<system>Be brief.\n")


@RESPONSES.works("stream", "Typed events; the last one has the response that comes without it.")
def stream(stack: Stack) -> None:
    types = [event.type for event in create(stack, stream=True)]
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] in ("response.completed", "response.incomplete")
    assert "response.output_text.delta" in types


@RESPONSES.works("store", "True unless said otherwise. Kept for the time that the gateway's operator says.")
def store(stack: Stack) -> None:
    kept, passing = create(stack), create(stack, store=False)
    assert stack.openai.responses.retrieve(kept.id) == kept
    items = list(stack.openai.responses.input_items.list(kept.id))
    assert [item.type for item in items] == ["message"]
    stack.openai.responses.delete(kept.id)
    for gone in (kept, passing):
        with pytest.raises(NotFoundError):
            stack.openai.responses.retrieve(gone.id)


@RESPONSES.works("previous_response_id", "Its input and output go before this one's.")
def previous_response_id(stack: Stack) -> None:
    first = create(stack)
    second = ask(stack, previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert input_tokens(second) > 2 * input_tokens(first) - len("<assistant>")
    with pytest.raises(BadRequestError) as unknown:
        create(stack, previous_response_id="resp_nobody")
    assert unknown.value.param == "previous_response_id"


@RESPONSES.works("max_output_tokens", "A response that it cuts is `incomplete`, for the reason `max_output_tokens`.")
def max_output_tokens(stack: Stack) -> None:
    cut = ask(stack, max_output_tokens=3)
    assert cut.usage is not None
    assert cut.usage.output_tokens == 3
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert_refused(lambda **options: create(stack, **options), "max_output_tokens", 0)


@RESPONSES.works("temperature")
def temperature(stack: Stack) -> None:
    assert create(stack).output_text == create(stack).output_text != create(stack, temperature=2).output_text
    assert_refused(lambda **options: create(stack, **options), "temperature", 3)


@RESPONSES.works("top_p")
def top_p(stack: Stack) -> None:
    assert create(stack, temperature=1, top_p=0.001).output_text == create(stack).output_text
    assert_refused(lambda **options: create(stack, **options), "top_p", 2)


@RESPONSES.works("text", "`format`: text, json_object, json_schema. `verbosity` other than medium is refused.")
def text(stack: Stack) -> None:
    form = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}
    for _ in range(3):
        answer = create(stack, text={"format": form}, max_output_tokens=300, temperature=1)
        if answer.status == "completed":
            assert_fits(answer.output_text)
            break
    assert answer.status == "completed"
    assert_refused(lambda **options: create(stack, **options), "text", {"verbosity": "low"})


@RESPONSES.works("tools", "Functions. Those that OpenAI's servers run are refused by name.")
def tools(stack: Stack) -> None:
    assert input_tokens(create(stack, tools=TOOLS)) > input_tokens(create(stack))
    assert_refused(lambda **options: create(stack, **options), "tools", [{"type": "web_search"}])


def called(stack: Stack, **options: Any) -> list[Any]:
    """A random model may write spaces up to the limit: one of several answers is a call."""
    for _ in range(4):
        answer = create(stack, tools=TOOLS, max_output_tokens=300, temperature=1, **options)
        calls = [item for item in answer.output if item.type == "function_call"]
        if answer.status == "completed":
            return calls
    raise AssertionError(answer)


@RESPONSES.works("tool_choice", "auto, none, required and a named function.")
def tool_choice(stack: Stack) -> None:
    (named,) = called(stack, tool_choice={"type": "function", "name": "time"})
    assert named.name == "time"
    assert json.loads(named.arguments)["city"] in ("Oslo", "Rome")
    assert_refused(lambda **options: create(stack, **options), "tool_choice", {"type": "web_search"}, tools=TOOLS)


@RESPONSES.works("parallel_tool_calls", "False allows one call.")
def parallel_tool_calls(stack: Stack) -> None:
    (required,) = called(stack, tool_choice="required", parallel_tool_calls=False)
    assert required.name in ("weather", "time")
    assert create(stack, parallel_tool_calls=False).parallel_tool_calls is False


@RESPONSES.works("metadata", "Up to 16 texts, kept with the response and in the usage ledger.")
def metadata(stack: Stack) -> None:
    made = create(stack, metadata={"project": "apollo"})
    assert stack.openai.responses.retrieve(made.id).metadata == {"project": "apollo"}
    assert_refused(lambda **options: create(stack, **options), "metadata", {str(index): "x" for index in range(17)})


@RESPONSES.works("prompt_cache_key", "Keeps requests of one key on one backend; prefixes are found by content.")
def prompt_cache_key(stack: Stack) -> None:
    assert create(stack, prompt_cache_key="a").output_text == create(stack).output_text


@RESPONSES.differs("user", "Keeps a user's requests on one backend; nothing else.")
def user(stack: Stack) -> None:
    assert create(stack, user="somebody").output_text == create(stack).output_text


@RESPONSES.differs("safety_identifier", "Taken; nothing is done with it.")
def safety_identifier(stack: Stack) -> None:
    assert create(stack, safety_identifier="somebody").output_text == create(stack).output_text


@RESPONSES.differs("reasoning", "`effort` other than none, summaries other than auto are refused; thoughts come whole.")
def reasoning(stack: Stack) -> None:
    assert create(stack, reasoning={"effort": "none"}).output_text == create(stack).output_text
    assert_refused(lambda **options: create(stack, **options), "reasoning", {"effort": "high"})
    assert_refused(lambda **options: create(stack, **options), "reasoning", {"summary": "detailed"})
    assert create(stack, reasoning={"summary": "auto"}).output_text == create(stack).output_text


@RESPONSES.differs("background", "Asked for by its id until it is done, or cancelled; not streamed.")
def background(stack: Stack) -> None:
    begun = create(stack, background=True)
    assert begun.status in ("queued", "in_progress", "completed")
    deadline = time.monotonic() + 60
    while (done := stack.openai.responses.retrieve(begun.id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (done.status, done.output_text) == ("incomplete", create(stack).output_text)
    assert stack.openai.responses.cancel(begun.id).status == "incomplete"
    assert create(stack, background=False).output_text == done.output_text
    assert_refused(lambda **options: create(stack, background=True, **options), "stream", True)


def refused(name: str, value: object, note: str = "", harmless: tuple[object, ...] = ()) -> None:
    def check(stack: Stack) -> None:
        assert_refused(lambda **options: create(stack, **options), name, value)
        for taken in harmless:
            assert create(stack, **{name: taken}).output_text == create(stack).output_text

    RESPONSES.add(name, Status.REFUSED, note, check)


refused("conversation", "conv_1", "`previous_response_id` goes on from a response.")
refused("context_management", [{"type": "compaction"}], "", ([],))
refused("include", ["message.output_text.logprobs"], "", ([],))
refused("max_tool_calls", 3, "Of tools that OpenAI's servers run.")
refused("prompt", {"id": "pmpt_1"}, "Stored prompts.")
refused("prompt_cache_retention", "24h", "Other than `in_memory`.", ("in_memory",))
refused("prompt_cache_options", {"mode": "explicit"})
refused("moderation", {"model": "omni-moderation-latest"})
refused("service_tier", "priority", "Other than `auto` and `default`.", ("auto", "default"))
refused("stream_options", {"include_obfuscation": True}, "Other than false.", ({"include_obfuscation": False},))
refused("top_logprobs", 3, "Chat completions have them.", (0,))
refused("truncation", "auto", "Other than `disabled`.", ("disabled",))
refused("access_programs", [{"type": "x"}])
refused("image", {"size": "auto"})
