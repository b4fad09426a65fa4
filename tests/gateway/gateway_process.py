"""A gateway in a process of its own, on a real PostgreSQL and Valkey, and what it is first told over the admin API."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from .gateway_under_test import PEPPER
from .upstream import Upstream

ADMIN = {"authorization": f"Bearer {'a' * 32}"}


def environment(postgres_url: str, valkey_url: str, spool: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "DESCANT_DATABASE_URL": postgres_url,
        "DESCANT_VALKEY_URL": valkey_url,
        "DESCANT_KEY_PEPPER": PEPPER,
        "DESCANT_ADMIN_KEY": "a" * 32,
        "DESCANT_LEDGER_SPOOL_DIR": str(spool),
        "DESCANT_SHUTDOWN_GRACE_S": "5",
        "DESCANT_HEALTH_INTERVAL_S": "0.2",
    }


@contextmanager
def gateway_process(env: dict[str, str], *args: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "descant_gateway", *args]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


async def wait_until_ready(url: str, process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    async with httpx.AsyncClient() as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            try:
                if (await client.get(f"{url}/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise AssertionError("the gateway did not become ready")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def create_world(client: httpx.AsyncClient, upstream: Upstream) -> str:
    """An organization's first backend, model, team and key, through the admin API. Returns the key."""
    backend = {"name": upstream.name, "base_url": upstream.url}
    (await client.put("/admin/v1/backends", json=backend, headers=ADMIN)).raise_for_status()
    model = {"name": "m", "backends": [upstream.name]}
    (await client.put("/admin/v1/models", json=model, headers=ADMIN)).raise_for_status()
    team = await client.post("/admin/v1/teams", json={"name": "t"}, headers=ADMIN)
    team.raise_for_status()
    key = await client.post("/admin/v1/keys", json={"name": "k", "team_id": team.json()["id"]}, headers=ADMIN)
    key.raise_for_status()
    return str(key.json()["api_key"])
