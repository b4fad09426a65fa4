"""Bad requests: the right status, the field by name, OpenAI's shape, and a server that is none the worse."""

import json

import httpx
import pytest

CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
LOAD = "/v1/load_lora_adapter"
HELLO = [{"role": "user", "content": "hello"}]
ASK = {"model": "tiny", "messages": HELLO, "max_tokens": 1}
PROMPT = {"model": "tiny", "prompt": "hello", "max_tokens": 1}


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (CHAT, b"", 400, None),
        (CHAT, b"{", 400, None),
        (CHAT, b"null", 400, None),
        (CHAT, b"[]", 400, None),
        (CHAT, b'"text"', 400, None),
        (CHAT, b"\xff\xfe", 400, None),
        (CHAT, b'{"model": "\xed\xa0\x80", "messages": []}', 400, None),
        (CHAT, b'{"model": "\\ud800", "messages": []}', 400, None),
        (CHAT, b'{"model": "tiny", "messages": [{"role": "user", "content": "\\udc00"}]}', 400, None),
        (CHAT, b'{"model": "tiny", "messages": [], "temperature": NaN}', 400, None),
        (CHAT, b'{"model": "tiny", "messages": [], "temperature": Infinity}', 400, None),
        (CHAT, b'{"model": "tiny", "messages": [], "temperature": 1e999}', 400, "temperature"),
        (CHAT, b'{"model": "tiny", "messages": ' + b"[" * 100_000, 400, "messages[0]"),
        (CHAT, b'{"model": "tiny", "messages": [], "audio": ' + b'{"a":' * 100_000, 400, None),
        (CHAT, b'{"model": "tiny", "messages": [], "seed": ' + b"9" * 10_000 + b"}", 400, "seed"),
        (CHAT, {}, 400, "model"),
        (CHAT, {"model": "tiny"}, 400, "messages"),
        (CHAT, ASK | {"model": "other"}, 404, "model"),
        (CHAT, ASK | {"model": ""}, 404, "model"),
        (CHAT, ASK | {"model": None}, 400, "model"),
        (CHAT, ASK | {"model": "tiny\x00"}, 404, "model"),
        (CHAT, ASK | {"messages": []}, 400, "messages"),
        (CHAT, ASK | {"messages": "hello"}, 400, "messages"),
        (CHAT, ASK | {"messages": [None]}, 400, "messages[0]"),
        (CHAT, ASK | {"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role"),
        (CHAT, ASK | {"messages": [{"role": "user", "content": {"a": 1}}]}, 400, "messages[0].content"),
        (
            CHAT,
            ASK | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages[0].content[0].type",
        ),
        (CHAT, ASK | {"temperature": -1}, 400, "temperature"),
        (CHAT, ASK | {"temperature": 2.1}, 400, "temperature"),
        (CHAT, ASK | {"temperature": "1"}, 400, "temperature"),
        (CHAT, ASK | {"top_p": 0}, 400, "top_p"),
        (CHAT, ASK | {"top_p": 1.5}, 400, "top_p"),
        (CHAT, ASK | {"top_k": -2}, 400, "top_k"),
        (CHAT, ASK | {"min_p": 2}, 400, "min_p"),
        (CHAT, ASK | {"presence_penalty": 3}, 400, "presence_penalty"),
        (CHAT, ASK | {"frequency_penalty": -3}, 400, "frequency_penalty"),
        (CHAT, ASK | {"repetition_penalty": 0}, 400, "repetition_penalty"),
        (CHAT, ASK | {"max_tokens": 0}, 400, "max_tokens"),
        (CHAT, ASK | {"max_tokens": -5}, 400, "max_tokens"),
        (CHAT, ASK | {"max_tokens": 10**30}, 400, "max_tokens"),
        (CHAT, ASK | {"max_completion_tokens": 0}, 400, "max_completion_tokens"),
        (CHAT, ASK | {"min_tokens": 5}, 400, "min_tokens"),
        (CHAT, ASK | {"seed": 2**64}, 400, "seed"),
        (CHAT, ASK | {"stop": [""]}, 400, "stop"),
        (CHAT, ASK | {"stop": ["x"] * 17}, 400, "stop"),
        (CHAT, ASK | {"stop": {"a": 1}}, 400, "stop"),
        (CHAT, ASK | {"stop_token_ids": [10**12]}, 400, "stop_token_ids[0]"),
        (CHAT, ASK | {"stop_token_ids": [264]}, 400, "stop_token_ids"),
        (CHAT, ASK | {"stream": 1}, 400, "stream"),
        (CHAT, ASK | {"stream_options": {"usage": True}}, 400, "stream_options.usage"),
        (CHAT, ASK | {"n": 0}, 400, "n"),
        (CHAT, ASK | {"n": 129}, 400, "n"),
        (CHAT, ASK | {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        (CHAT, ASK | {"top_logprobs": 2}, 400, "top_logprobs"),
        (CHAT, ASK | {"prompt_logprobs": 21}, 400, "prompt_logprobs"),
        (CHAT, ASK | {"logit_bias": {"1": 101}}, 400, "logit_bias"),
        (CHAT, ASK | {"logit_bias": {"a": 1}}, 400, "logit_bias"),
        (CHAT, ASK | {"logit_bias": {"264": 1}}, 400, "logit_bias"),
        (CHAT, ASK | {"logit_bias": {"-1": 1}}, 400, "logit_bias"),
        (CHAT, ASK | {"allowed_token_ids": []}, 400, "allowed_token_ids"),
        (CHAT, ASK | {"allowed_token_ids": [264]}, 400, "allowed_token_ids"),
        (CHAT, ASK | {"bad_words": [""]}, 400, "bad_words"),
        (CHAT, ASK | {"bad_words": ["x" * 65]}, 400, "bad_words"),
        (CHAT, ASK | {"truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens"),
        (CHAT, ASK | {"truncate_prompt_tokens": -2}, 400, "truncate_prompt_tokens"),
        (CHAT, ASK | {"continue_final_message": True}, 400, "continue_final_message"),
        (CHAT, ASK | {"chat_template_kwargs": {"enable_thinking": True}}, 400, "chat_template_kwargs"),
        (CHAT, ASK | {"use_beam_search": True}, 400, "use_beam_search"),
        (CHAT, ASK | {"modalities": ["text", "audio"]}, 400, "modalities"),
        (CHAT, ASK | {"tools": [{}]}, 400, "tools[0].function"),
        (CHAT, ASK | {"response_format": {"type": "xml"}}, 400, "response_format.type"),
        (CHAT, ASK | {"lora_path": "/etc"}, 400, "lora_path"),
        (CHAT, ASK | {"": 1}, 400, ""),
        (COMPLETIONS, PROMPT | {"prompt": []}, 400, "prompt"),
        (COMPLETIONS, PROMPT | {"prompt": ""}, 400, "prompt"),
        (COMPLETIONS, PROMPT | {"prompt": [[]]}, 400, "prompt"),
        (COMPLETIONS, PROMPT | {"prompt": [1, "a"]}, 400, "prompt"),
        (COMPLETIONS, PROMPT | {"prompt": [-1]}, 400, "prompt[0]"),
        (COMPLETIONS, PROMPT | {"prompt": [1.5]}, 400, "prompt[0]"),
        (COMPLETIONS, PROMPT | {"prompt": [264]}, 400, "prompt"),
        (COMPLETIONS, PROMPT | {"prompt": ["ok", "x" * 5000]}, 400, "prompt"),
        (COMPLETIONS, PROMPT | {"prompt": [1] * 5000}, 400, "prompt"),
        (COMPLETIONS, PROMPT | {"prompt": "x" * 5000, "add_special_tokens": False}, 400, "prompt"),
        (COMPLETIONS, PROMPT | {"prompt": "x" * 5000, "stream": True}, 400, "prompt"),
        (COMPLETIONS, PROMPT | {"n": 3, "best_of": 2}, 400, "best_of"),
        (COMPLETIONS, PROMPT | {"best_of": 2, "stream": True}, 400, "best_of"),
        (COMPLETIONS, PROMPT | {"prompt": ["a"] * 200, "n": 100}, 400, "n"),
        (COMPLETIONS, PROMPT | {"logprobs": 21}, 400, "logprobs"),
        (COMPLETIONS, PROMPT | {"logprobs": 21, "echo": True}, 400, "logprobs"),
        (COMPLETIONS, PROMPT | {"max_tokens": 0}, 400, "max_tokens"),
        (TOKENIZE, {}, 400, "prompt"),
        (TOKENIZE, {"prompt": "a", "messages": HELLO}, 400, "prompt"),
        (TOKENIZE, {"prompt": "a", "model": "other"}, 404, "model"),
        (TOKENIZE, {"messages": []}, 400, "messages"),
        (DETOKENIZE, {"tokens": "a"}, 400, "tokens"),
        (DETOKENIZE, {"tokens": [-1]}, 400, "tokens[0]"),
        (LOAD, {"lora_name": "x", "lora_path": "/"}, 400, "lora_path"),
        (LOAD, {"lora_name": "x"}, 400, "lora_path"),
    ],
)
def test_a_malformed_request_is_refused(http, path, body, status, param):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = http.post(path, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["message"]


def test_the_server_is_none_the_worse(http, server):
    assert http.post(CHAT, json=ASK).status_code == 200
    assert server.metric("vllm:num_requests_running") == 0
    # Nothing was logged as a failure: all of it was the clients' fault.
    assert not [line for line in server.lines if "ERROR" in line or "Traceback" in line]


def test_all_honoured_options_at_once(http):
    options = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.01,
        "seed": 3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "stop": "\n",
        "stop_token_ids": [5],
        "ignore_eos": True,
        "priority": 1,
        "cache_salt": "team",
        "user": "u",
        "max_tokens": 4,
    }
    assert http.post(CHAT, json=ASK | options).status_code == 200
    assert http.post(COMPLETIONS, json=PROMPT | options | {"add_special_tokens": False}).status_code == 200
