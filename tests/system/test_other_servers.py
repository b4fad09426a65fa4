"""The gateway before an OpenAI-compatible server that is not ours: `transformers serve`, in a process of its own.

It has no /ready, no /metrics and no usage endpoint, tells its usage in a stream's last chunk, and writes its errors in
FastAPI's shape: what any plain server may do.
"""

import importlib.util
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from tests.gateway.databases import valkey_server, valkey_url
from tests.gateway.gateway_under_test import Running, World, eventually, running_gateway, upstream_times
from tests.processes import running_process
from tests.server.conftest import model_path
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from descant_gateway.catalogue.snapshot import Backend
from descant_gateway.usage.record import Outcome

__all__ = ["model_path", "valkey_server", "valkey_url"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="`transformers serve` needs fastapi"),
]

NUM_TOKENS = 12
MESSAGES = [{"role": "user", "content": "Say hello"}]


@dataclass(frozen=True)
class OtherServer:
    url: str
    model: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def other_server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherServer]:
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(model_path, folder)
    set_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = ["-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    url = f"http://127.0.0.1:{port}"
    with running_process(command, folder.parent / "log", {"HF_HUB_OFFLINE": "1"}) as started:
        started.wait_for(lambda: _is_healthy(url) or None)
        yield OtherServer(url, str(folder), started.process)


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@dataclass
class Stage:
    world: World
    gateway: Running
    client: AsyncOpenAI


@pytest_asyncio.fixture
async def stage(other_server: OtherServer, valkey_url: str) -> AsyncIterator[Stage]:
    world = World()
    backend = Backend(name="other", base_url=other_server.url)
    world.add_model("m", backend, upstream_name=other_server.model)
    world.add_model("unknown-there", backend)
    patient = upstream_times(health_interval_s=0.5)
    async with running_gateway(world, valkey_url, upstreams=patient) as gateway:
        client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=world.add_key(), max_retries=0, timeout=60)
        async with client:
            yield Stage(world, gateway, client)


async def test_a_whole_reply_is_booked_by_the_servers_own_count(stage: Stage) -> None:
    reply = await stage.client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=NUM_TOKENS)
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 0
    await eventually(lambda: stage.world.records)
    [record] = stage.world.records
    assert (record.outcome, record.status, record.estimated) == (Outcome.COMPLETED, 200, False)
    assert record.prompt_tokens == reply.usage.prompt_tokens
    assert record.completion_tokens == reply.usage.completion_tokens


async def test_a_stream_comes_in_chunks_and_is_booked(stage: Stage) -> None:
    stream = await stage.client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=NUM_TOKENS, stream=True, temperature=0
    )
    chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    whole = await stage.client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=NUM_TOKENS, temperature=0
    )
    assert len(texts) > 2
    text = "".join(texts)  # without the last letter, where its bytes are not all there
    assert text
    assert (whole.choices[0].message.content or "").startswith(text)
    await eventually(lambda: len(stage.world.records) == 2)
    streamed, at_once = stage.world.records
    assert not streamed.estimated
    assert (streamed.prompt_tokens, streamed.completion_tokens) == (at_once.prompt_tokens, at_once.completion_tokens)
    assert streamed.ttft_ms is not None


async def test_who_leaves_a_stream_pays_what_came(stage: Stage) -> None:
    """The server tells nobody afterwards what it generated, so the chunks that came through count."""
    stream = await stage.client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=2000, stream=True)
    num_chunks = 0
    async for chunk in stream:
        num_chunks += bool(chunk.choices and chunk.choices[0].delta.content)
        if num_chunks == 5:
            break
    await stream.close()
    await eventually(lambda: stage.world.records)
    [record] = stage.world.records
    assert (record.outcome, record.status, record.estimated) == (Outcome.CLIENT_LEFT, 499, True)
    assert 5 <= record.completion_tokens < 2000
    await eventually(lambda: stage.gateway.gateway.backends.state("other").num_in_flight == 0)


async def test_what_it_refuses_is_told_in_openais_shape(stage: Stage) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stage.client.chat.completions.create(model="unknown-there", messages=MESSAGES)
    assert "pinned" in str(caught.value)
    with pytest.raises(openai.NotFoundError):
        await stage.client.chat.completions.create(model="nobody-has-it", messages=MESSAGES)
    [record] = stage.world.records
    assert (record.outcome, record.completion_tokens) == (Outcome.REFUSED, 0)


async def test_models_are_listed_and_health_is_looked_at(stage: Stage) -> None:
    assert {model.id async for model in stage.client.models.list()} == {"m", "unknown-there"}
    state = stage.gateway.gateway.backends.state("other")
    assert state.is_healthy
    assert state.report is None  # it publishes no load: routing goes by what the gateway itself has in flight


async def test_while_it_stands_still_clients_are_told_so(stage: Stage, other_server: OtherServer) -> None:
    """Stopped as by a debugger: it holds its port and answers nothing."""
    other_server.process.send_signal(signal.SIGSTOP)
    try:
        await eventually(lambda: not stage.gateway.gateway.backends.state("other").is_healthy, timeout_s=15)
        with pytest.raises(openai.InternalServerError) as caught:
            await stage.client.chat.completions.create(model="m", messages=MESSAGES)
        assert caught.value.status_code == 503
    finally:
        other_server.process.send_signal(signal.SIGCONT)
    await eventually(lambda: stage.gateway.gateway.backends.state("other").is_healthy, timeout_s=15)
    await stage.client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=1)
