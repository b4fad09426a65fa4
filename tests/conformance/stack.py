"""One whole Descant for the suite: engine and gateway as the processes that users start, and the official clients."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
from openai import OpenAI
from tests.processes import running_process

from .asking import Chats, Completions
from .model_folder import MAX_MODEL_LEN

if TYPE_CHECKING:
    from anthropic import Anthropic

MODEL: Final = "tiny"
ADMIN_KEY: Final = "an admin key of the conformance suite"
START_S: Final = 90.0


@dataclass(frozen=True)
class Stack:
    """Where to ask, and whose key to ask with."""

    gateway_url: str
    engine_url: str
    api_key: str

    @cached_property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.gateway_url}/v1", api_key=self.api_key, max_retries=0, timeout=30)

    @cached_property
    def engine(self) -> OpenAI:
        """OpenAI's client past the gateway, for what only the engine server has."""
        return OpenAI(base_url=self.engine_url, api_key="none", max_retries=0, timeout=30)

    @cached_property
    def anthropic(self) -> "Anthropic":
        from anthropic import Anthropic  # late: see fields.py

        return Anthropic(base_url=self.gateway_url, api_key=self.api_key, max_retries=0, timeout=30)

    @cached_property
    def chats(self) -> Chats:
        return Chats(self.openai, MODEL)

    @cached_property
    def completions(self) -> Completions:
        return Completions(self.openai, MODEL)


@contextmanager
def running_engine(model: Path, log: Path) -> Iterator[str]:
    """The engine server's URL; it serves until the block ends."""
    argv = ["-m", "descant_server", str(model), "--port", "0", "--device", "cpu", "--dtype", "float32"]
    argv += ["--load-format", "dummy", "--served-model-name", MODEL, "--max-model-len", str(MAX_MODEL_LEN)]
    argv += ["--pooling-type", "last", "--hf-overrides", '{"matryoshka_dimensions": [16, 32, 64]}']
    with _running(argv, {"OMP_NUM_THREADS": "1"}, log, rb"(http://\S+?),") as url:
        yield url


@contextmanager
def running_gateway(settings: Mapping[str, str], log: Path) -> Iterator[str]:
    """The gateway's URL."""
    settings = {"DESCANT_ADMIN_KEY": ADMIN_KEY, "DESCANT_KEY_PEPPER": "p" * 32, **settings}
    argv = ["-m", "descant_gateway", "--port", "0"]
    with _running(argv, settings, log, rb'"port":(\d+),"event":"gateway is listening"') as port:
        yield f"http://127.0.0.1:{port}"


def register(gateway_url: str, engine_url: str) -> str:
    """Tells the gateway of the engine and its model, as an operator does; a team's key."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=f"{gateway_url}/admin/v1", headers=headers, trust_env=False, timeout=20) as admin:
        admin.put("/backends", json={"name": "local", "base_url": engine_url}).raise_for_status()
        admin.put("/models", json={"name": MODEL, "backends": ["local"]}).raise_for_status()
        team = admin.post("/teams", json={"name": "conformance"}).raise_for_status().json()
        issued = admin.post("/keys", json={"team_id": team["id"], "name": "suite"}).raise_for_status().json()
    key: str = issued["api_key"]
    return key


def wait_until_served(stack: Stack) -> None:
    """Until the gateway has heard of the key and the model."""
    deadline = time.monotonic() + START_S
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    ask = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    while True:
        reply = httpx.post(f"{stack.gateway_url}/v1/completions", json=ask, headers=headers, trust_env=False)
        if reply.status_code == 200:
            return
        assert time.monotonic() < deadline, reply.text
        time.sleep(0.05)


@contextmanager
def _running(argv: Sequence[str], settings: Mapping[str, str], log: Path, address: bytes) -> Iterator[str]:
    """A Python process, once it has logged what `address` matches; that is what it gives."""
    with running_process(argv, log, settings) as started:
        yield started.wait_for(lambda: re.search(address, log.read_bytes()))[1].decode()
