"""Bad bodies become a 400 that names the field; nothing becomes another exception."""

import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant_wire.chat import ChatCompletionRequest
from descant_wire.completions import CompletionRequest
from descant_wire.decoding import decode_request
from descant_wire.errors import ApiError
from descant_wire.sampling import StreamOptions
from descant_wire.tokenize import TokenizeRequest

MINIMAL = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def refusal(body: bytes, request_type: type = ChatCompletionRequest) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode_request(body, request_type)
    return caught.value


def chat(**fields: object) -> bytes:
    return json.dumps(MINIMAL | fields).encode()


@pytest.mark.parametrize("body", [b"", b"nul", b"\xff", b'{"model": "\xff"}', b"{", b'{"model": NaN}', b"\x00"])
def test_what_is_no_json(body: bytes) -> None:
    error = refusal(body)
    assert error.status == 400
    assert error.detail.code == "invalid_json"


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth_is_refused(opening: bytes) -> None:
    body = b'{"model": "m", "messages": [], "prediction": ' + opening * 100_000
    assert refusal(body).detail.code == "invalid_json"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 3}, "model"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": "x"}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"priority": 2**40}, "priority"),
        ({"top_q": 1}, "top_q"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
    ],
)
def test_the_field_at_fault_is_named(fields: dict[str, object], param: str) -> None:
    error = refusal(chat(**fields))
    assert (error.status, error.detail.param) == (400, param)
    assert param in error.detail.message


@pytest.mark.parametrize(
    ("fields", "possible"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "assistant, developer, system, tool, user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text"),
        ({"response_format": {"type": "xml"}}, "json_object, json_schema, structural_tag, text"),
        ({"tool_choice": "perhaps"}, "auto, none, required"),
        ({"tool_choice": {"type": "allowed_tools", "function": {"name": "x"}}}, "function"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "function"),
    ],
)
def test_what_is_possible_instead_is_listed(fields: dict[str, object], possible: str) -> None:
    assert refusal(chat(**fields)).detail.message.endswith(f"; possible: {possible}.")


def test_a_missing_field_is_named() -> None:
    assert refusal(b'{"model": "m"}').detail.param == "messages"
    assert refusal(b'{"model": "m"}', CompletionRequest).detail.param == "prompt"


def test_numbers_beyond_a_double_are_refused() -> None:
    assert refusal(b'{"model": "m", "messages": [], "temperature": 1e999}').detail.param == "temperature"
    assert refusal(b'{"model": "m", "messages": [], "seed": ' + b"9" * 5000 + b"}").detail.param == "seed"


UNSUPPORTED: dict[str, object] = {
    "functions": [{}],
    "function_call": {"name": "f"},
    "modalities": ["audio"],
    "audio": {"voice": "x"},
    "prediction": {},
    "web_search_options": {},
    "moderation": {},
    "reasoning_effort": "high",
    "verbosity": "low",
    "service_tier": "flex",
    "store": True,
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {},
    "chat_template": "{{ messages }}",
    "documents": [{}],
    "echo": True,
    "use_beam_search": True,
    "length_penalty": 2.0,
    "early_stopping": True,
}


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_not_honoured_is_refused_by_name(field: str) -> None:
    error = refusal(chat(**{field: UNSUPPORTED[field]}))
    assert (error.detail.param, error.detail.code) == (field, "unsupported_parameter")


@pytest.mark.parametrize("option", ["include_obfuscation", "continuous_usage_stats"])
def test_an_option_of_streams_is_refused_by_its_own_name(option: str) -> None:
    error = refusal(chat(stream=True, stream_options={"include_usage": True, option: True}))
    assert (error.detail.param, error.detail.code) == (f"stream_options.{option}", "unsupported_parameter")
    assert "only null or false is accepted" in error.detail.message


@pytest.mark.parametrize("request_type", [ChatCompletionRequest, CompletionRequest])
def test_every_restricted_field_exists_and_takes_its_default(request_type: type[ChatCompletionRequest]) -> None:
    minimal: dict[str, object] = MINIMAL if request_type is ChatCompletionRequest else {"model": "m", "prompt": "x"}
    for field, accepted in request_type.only.items():
        for value in (None, *accepted):
            encoded = msgspec.json.encode({**minimal, field: value})
            assert getattr(decode_request(encoded, request_type), field) == value


@pytest.mark.parametrize(("field", "value"), [("suffix", "x"), ("use_beam_search", True)])
def test_completions_refuse_by_name(field: str, value: object) -> None:
    error = refusal(json.dumps({"model": "m", "prompt": "x", field: value}).encode(), CompletionRequest)
    assert (error.detail.param, error.detail.code) == (field, "unsupported_parameter")


def test_what_a_client_sends_back_of_an_answer_is_taken() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    answer = {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": [call]}
    told = {"role": "tool", "tool_call_id": "call_1", "content": "12:00"}
    request = decode_request(chat(messages=[answer, told]), ChatCompletionRequest)
    assert request.messages[0].tool_calls is not None
    assert request.messages[0].tool_calls[0].function.name == "now"
    assert request.messages[1].tool_call_id == "call_1"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {"lark": "start: A"}}, "structured_outputs.lark"),
        ({"guided_choice": "yes"}, "guided_choice"),
    ],
)
def test_malformed_tools_and_formats_are_refused_by_name(fields: dict[str, object], param: str) -> None:
    assert refusal(chat(**fields)).detail.param == param


def test_harmless_fields_are_taken() -> None:
    fields = {"user": "u", "metadata": {"a": "b"}, "store": False, "safety_identifier": "s", "prompt_cache_key": "k"}
    assert decode_request(chat(**fields), ChatCompletionRequest).user == "u"


def test_all_honoured_fields_arrive() -> None:
    fields: dict[str, object] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.1,
        "seed": 7,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "max_tokens": 5,
        "max_completion_tokens": 6,
        "min_tokens": 1,
        "stop": ["a", "b"],
        "stop_token_ids": [1],
        "ignore_eos": True,
        "priority": -1,
        "cache_salt": "team",
        "stream": True,
    }
    request = decode_request(chat(**fields, stream_options={"include_usage": True}), ChatCompletionRequest)
    assert {name: getattr(request, name) for name in fields} == fields
    assert request.stream_options == StreamOptions(include_usage=True)
    assert request.wants_usage_chunk
    assert request.stop_strings == ("a", "b")
    assert request.completion_limit == 6


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(sorted(ChatCompletionRequest.__struct_fields__)), inner)
        ),
    )
)
def test_any_json_is_a_request_or_a_refusal(value: object) -> None:
    body = json.dumps(value).encode()
    for request_type in (ChatCompletionRequest, CompletionRequest, TokenizeRequest):
        with suppress(ApiError):
            decode_request(body, request_type)


@given(st.binary())
def test_any_bytes_are_a_request_or_a_refusal(body: bytes) -> None:
    assert refusal(body).status == 400
