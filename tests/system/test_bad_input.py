"""Malformed requests through the gateway to the real engine: each refused with the right status in OpenAI's shape, by
whichever of the two sees what is wrong, and neither the worse for it. Damaged files are refused at load."""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from tests.gateway.gateway_under_test import bearer

from descant_cli.up.options import DEMO_MODEL_NAME, find_model
from descant_engine.checkpoint import gguf_cache

from .conftest import ADAPTERS, MAX_MODEL_LEN, Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
ASK = {"model": DEMO_MODEL_NAME, "messages": HELLO, "max_tokens": 2}
PROMPT = {"model": DEMO_MODEL_NAME, "prompt": "Hello", "max_tokens": 2}
NAME = DEMO_MODEL_NAME.encode()
TOO_LONG = "word " * (2 * MAX_MODEL_LEN)


def members(text: bytes) -> bytes:
    """A chat whose messages are in order, with further members."""
    return b'{"model": "' + NAME + b'", "messages": [{"role": "user", "content": "Hello"}], ' + text + b"}"


BODIES = [
    # no JSON, or no object
    (CHAT, b"", 400, None),
    (CHAT, b"{", 400, None),
    (CHAT, b"null", 400, None),
    (CHAT, b"[]", 400, None),
    (CHAT, b'"text"', 400, None),
    (CHAT, b"model=smollm2&prompt=Hello", 400, None),
    (CHAT, json.dumps(ASK).encode()[:-20], 400, None),
    (CHAT, json.dumps(ASK).encode() + b"}", 400, None),
    (CHAT, json.dumps(ASK).encode("utf-16"), 400, None),
    (CHAT, b"\xff\xfe", 400, None),
    (CHAT, b"{'model': 'smollm2'}", 400, None),
    (CHAT, b'{"model": "smollm2", /* no */ "messages": []}', 400, None),
    # depth
    (CHAT, b"[" * 100_000, 400, None),
    (CHAT, members(b'"user": ' + b"[" * 100_000), 400, None),
    (CHAT, members(b'"user": ' + b'{"a":' * 900 + b"1" + b"}" * 900), 400, "user"),
    # unicode
    (CHAT, b'{"model": "\\ud800", "messages": []}', 400, None),
    (CHAT, b'{"model": "\xed\xa0\x80", "messages": []}', 400, None),
    (CHAT, b'{"model": "' + NAME + b'", "messages": [{"role": "user", "content": "\\udc00"}]}', 400, None),
    (CHAT, ASK | {"model": f"{DEMO_MODEL_NAME}\x00"}, 404, "model"),
    (CHAT, ASK | {"model": "ѕmollm2"}, 404, "model"),
    # numbers
    (CHAT, members(b'"temperature": NaN'), 400, None),
    (CHAT, members(b'"temperature": -Infinity'), 400, None),
    (CHAT, members(b'"temperature": 1e999'), 400, "temperature"),
    (CHAT, members(b'"seed": ' + b"9" * 10_000), 400, "seed"),
    (CHAT, members(b'"max_tokens": 1.5'), 400, "max_tokens"),
    (CHAT, members(b'"max_tokens": 1e400'), 400, "max_tokens"),
    (CHAT, ASK | {"max_tokens": 10**30}, 400, "max_tokens"),
    (CHAT, ASK | {"max_tokens": -1}, 400, "max_tokens"),
    (CHAT, ASK | {"max_tokens": 0}, 400, "max_tokens"),
    (CHAT, ASK | {"max_completion_tokens": -1}, 400, "max_completion_tokens"),
    (CHAT, ASK | {"temperature": -0.1}, 400, "temperature"),
    (CHAT, ASK | {"temperature": 2.5}, 400, "temperature"),
    (CHAT, ASK | {"top_p": 0}, 400, "top_p"),
    (CHAT, ASK | {"top_k": -7}, 400, "top_k"),
    (CHAT, ASK | {"min_p": 1.1}, 400, "min_p"),
    (CHAT, ASK | {"presence_penalty": 9}, 400, "presence_penalty"),
    (CHAT, ASK | {"frequency_penalty": -9}, 400, "frequency_penalty"),
    (CHAT, ASK | {"repetition_penalty": 0}, 400, "repetition_penalty"),
    (CHAT, ASK | {"min_tokens": 3}, 400, "min_tokens"),
    (CHAT, ASK | {"seed": 2**64}, 400, "seed"),
    # types
    (CHAT, ASK | {"model": None}, 400, "model"),
    (CHAT, ASK | {"model": [DEMO_MODEL_NAME]}, 400, "model"),
    (CHAT, ASK | {"stream": "yes"}, 400, "stream"),
    (CHAT, ASK | {"stream": 1}, 400, "stream"),
    (CHAT, ASK | {"temperature": "0"}, 400, "temperature"),
    (CHAT, ASK | {"temperature": True}, 400, "temperature"),
    (CHAT, ASK | {"messages": "Hello"}, 400, "messages"),
    (CHAT, ASK | {"messages": [None]}, 400, "messages[0]"),
    (CHAT, ASK | {"messages": [{"role": 1, "content": "Hello"}]}, 400, "messages[0].role"),
    (CHAT, ASK | {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
    # what is missing, unknown or empty
    (CHAT, {}, 400, "model"),
    (CHAT, {"model": DEMO_MODEL_NAME}, 400, "messages"),
    (CHAT, ASK | {"messages": []}, 400, "messages"),
    (CHAT, ASK | {"messages": [{"content": "Hello"}]}, 400, "messages[0].role"),
    (CHAT, ASK | {"model": "gpt-none"}, 404, "model"),
    (CHAT, ASK | {"model": ""}, 404, "model"),
    (CHAT, ASK | {"model": "../../etc/passwd"}, 404, "model"),
    (CHAT, ASK | {"temprature": 1}, 400, "temprature"),
    (CHAT, ASK | {"lora_path": "/etc"}, 400, "lora_path"),
    (CHAT, ASK | {"tools": [{}]}, 400, "tools[0].function"),
    (CHAT, ASK | {"n": 0}, 400, "n"),
    # given twice: the last one counts, for gateway and engine alike
    (CHAT, members(b'"model": "gpt-none"'), 404, "model"),
    (CHAT, members(b'"temperature": 0, "temperature": 5'), 400, "temperature"),
    # stop and stream options
    (CHAT, ASK | {"stop": [""]}, 400, "stop"),
    (CHAT, ASK | {"stop": ["x"] * 17}, 400, "stop"),
    (CHAT, ASK | {"stop": 5}, 400, "stop"),
    (CHAT, ASK | {"stop_token_ids": [10**9]}, 400, "stop_token_ids"),
    (CHAT, ASK | {"stream": True, "stream_options": []}, 400, "stream_options"),
    (CHAT, ASK | {"stream": True, "stream_options": {"include_usage": "no"}}, 400, "stream_options.include_usage"),
    (CHAT, ASK | {"stream": True, "stream_options": {"usage": True}}, 400, "stream_options.usage"),
    # prompts
    (CHAT, ASK | {"messages": [{"role": "user", "content": TOO_LONG}]}, 400, "messages"),
    (CHAT, ASK | {"messages": [{"role": "user", "content": TOO_LONG}], "stream": True}, 400, "messages"),
    (COMPLETIONS, PROMPT | {"prompt": TOO_LONG}, 400, "prompt"),
    (COMPLETIONS, PROMPT | {"prompt": [1] * (MAX_MODEL_LEN + 1)}, 400, "prompt"),
    (COMPLETIONS, PROMPT | {"prompt": ""}, 400, "prompt"),
    (COMPLETIONS, PROMPT | {"prompt": []}, 400, "prompt"),
    (COMPLETIONS, PROMPT | {"prompt": [-1]}, 400, "prompt[0]"),
    (COMPLETIONS, PROMPT | {"prompt": [10**6]}, 400, "prompt"),
    (COMPLETIONS, PROMPT | {"prompt": [1, "a"]}, 400, "prompt"),
    (COMPLETIONS, PROMPT | {"prompt": {"text": "Hello"}}, 400, "prompt"),
    (COMPLETIONS, PROMPT | {"n": 3, "best_of": 2}, 400, "best_of"),
    (COMPLETIONS, {"model": DEMO_MODEL_NAME, "messages": HELLO}, 400, "messages"),
]


def assert_openai_error(reply: httpx.Response, status: int, param: str | None) -> None:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["param"] == param, error


async def assert_unharmed(stack: Stack) -> None:
    async with stack.client() as client:
        answer = await client.chat.completions.create(**ASK)  # type: ignore[call-overload]
    assert answer.usage.completion_tokens > 0
    assert stack.engine.process.poll() is None
    # The engine reports its numbers four times a second.
    await eventually(lambda: stack.engine.num_requests == 0, "an idle engine")
    assert stack.errors == []
    assert stack.engine.errors == []


async def post(stack: Stack, path: str, content: bytes, **headers: str) -> httpx.Response:
    sent = bearer(stack.key) | {"content-type": "application/json"} | headers
    async with httpx.AsyncClient(base_url=stack.url, timeout=30, trust_env=False) as client:
        return await client.post(path, content=content, headers=sent)


@pytest.mark.parametrize(("path", "body", "status", "param"), BODIES)
async def test_malformed_body_is_refused(
    stack: Stack, path: str, body: bytes | dict[str, object], status: int, param: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert_openai_error(await post(stack, path, content), status, param)


async def test_too_long_a_prompt_is_told_both_numbers(stack: Stack) -> None:
    reply = await post(stack, COMPLETIONS, json.dumps(PROMPT | {"prompt": [1] * 1500}).encode())
    assert "1500" in reply.json()["error"]["message"]
    assert str(MAX_MODEL_LEN) in reply.json()["error"]["message"]


async def test_wrong_key_method_and_path_are_refused(stack: Stack) -> None:
    content = json.dumps(ASK).encode()
    wrong_keys = ("", "Bearer", "Bearer dsc_x", f"Basic {stack.key}", f"Bearer {stack.key}x")
    for value in wrong_keys:
        assert_openai_error(await post(stack, CHAT, content, authorization=value), 401, None)
    async with httpx.AsyncClient(base_url=stack.url, headers=bearer(stack.key), trust_env=False) as client:
        assert_openai_error(await client.get(CHAT), 405, None)
        assert_openai_error(await client.post("/v1/chat", json=ASK), 404, None)
    assert_openai_error(await post(stack, CHAT, b" " * (8 << 20) + content), 413, None)


async def test_odd_headers_harm_nobody(stack: Stack) -> None:
    content = json.dumps(ASK).encode()
    odd = {"x-request-id": "a b\tc" * 100, "traceparent": "nonsense", "x-forwarded-for": "999.1", "accept": "image/png"}
    reply = await post(stack, CHAT, content, **odd)
    assert reply.status_code == 200
    assert reply.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("head", "answers"),
    [
        ("content-length: 5000", False),  # and then the client goes
        ("transfer-encoding: chunked", True),  # what follows is no chunk
        ("content-length: -5", True),
        ("content-length: many", True),
        ("no colon here", True),
    ],
)
async def test_broken_http_ends_the_connection_and_nothing_else(stack: Stack, head: str, answers: bool) -> None:
    address = urlsplit(stack.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    request = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.key}\r\n{head}\r\n\r\n"
    writer.write(request.encode() + json.dumps(ASK).encode()[:-10])
    writer.write_eof()
    async with asyncio.timeout(10):
        reply = await reader.read()
    writer.close()
    assert reply.startswith(b"HTTP/1.1 400") if answers else reply == b""


async def test_everybody_is_unharmed(stack: Stack) -> None:
    await assert_unharmed(stack)


async def test_damaged_model_is_refused_by_its_file(stack: Stack, tmp_path: Path) -> None:
    file, damaged = Path(find_model(None)[0]), tmp_path / "damaged"
    for folder in (gguf_cache.config_folder(file), gguf_cache.tokenizer_folder(file)):
        shutil.copytree(folder, damaged, dirs_exist_ok=True)
    with (gguf_cache.weights_folder(file, "float32") / "model.safetensors").open("rb") as sound:
        (damaged / "model.safetensors").write_bytes(sound.read(1 << 20))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "descant_cli", "serve", str(damaged), "--port", "0", "--device", "cpu"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(100):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 1
    assert "model.safetensors" in output.decode()
    assert "Traceback" not in output.decode()
    await assert_unharmed(stack)


async def test_damaged_adapter_is_refused_by_its_file(stack: Stack, tmp_path: Path) -> None:
    name, source = next(iter(ADAPTERS.items()))
    weights = "adapter_model.safetensors"
    sound = (source / weights).read_bytes()
    damaged = {
        "empty": b"",
        "truncated": sound[: len(sound) // 2],
        "long-header": (2**62).to_bytes(8, "little") + sound[8:],
        "header": sound[:8] + b"#" + sound[9:],
        "noise": bytes(range(256)) * 16,
    }
    async with httpx.AsyncClient(base_url=stack.engine.url, timeout=30, trust_env=False) as engine:
        for fault, content in damaged.items():
            folder = tmp_path / fault
            shutil.copytree(source, folder)
            (folder / weights).write_bytes(content)
            body = {"lora_name": f"{name}-{fault}", "lora_path": str(folder)}
            reply = await engine.post("/v1/load_lora_adapter", json=body)
            assert_openai_error(reply, 400, "lora_path")
            assert weights in reply.json()["error"]["message"], (fault, reply.text)
        served = {model["id"] for model in (await engine.get("/v1/models")).json()["data"]}
    assert not [model for model in served if model.startswith(f"{name}-")]
    await assert_unharmed(stack)
