"""Several processes on one port, the pages they make together, and how they end. Real processes throughout."""

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.gateway_process import create_world, environment, free_port, gateway_process, wait_until_ready
from tests.gateway.gateway_under_test import bearer, eventually
from tests.gateway.upstream import Upstream

from descant_gateway.process.worker_metrics import merge

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Say hello"}]}


def children(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def series(page: str, name: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in page.splitlines() if line.startswith(name + "{")]
    return {labels: float(value) for labels, _, value in lines}


async def test_workers_serve_together_and_drain_together(
    upstream: Upstream, engine: AsyncEngine, postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment(postgres_url, valkey_url, tmp_path) | {"DESCANT_DRAIN_DELAY_S": "1"}
    with gateway_process(env, "--port", str(port), "--workers", "2") as process:
        await wait_until_ready(url, process)
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            key = await create_world(client, upstream)
        await eventually(lambda: len(children(process)) == 2)
        await asyncio.sleep(1)

        # A connection each: whichever worker takes it answers, and each page counts all of them.
        async def ask_once() -> int:
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                reply = await client.post(CHAT, json=BODY, headers=bearer(key))
                assert reply.status_code == 200, reply.text
                return reply.status_code

        assert set(await asyncio.gather(*(ask_once() for _ in range(40)))) == {200}
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            page = (await client.get("/metrics")).text
        counts = series(page, "descant_gateway_requests_total")
        assert sum(counts.values()) == 40
        assert page.count("# TYPE descant_gateway_requests_total counter") == 1

        assert len({labels.split('worker="')[1][0] for labels, count in counts.items() if count}) == 2

        # One that dies is replaced, and its siblings serve meanwhile.
        await asyncio.sleep(0.6)
        victim = children(process)[0]
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: victim not in children(process))
        assert set(await asyncio.gather(*(ask_once() for _ in range(10)))) == {200}
        await eventually(lambda: victim not in children(process) and len(children(process)) == 2)

        # /ready says no while requests are still taken; a stream that runs ends whole.
        upstream.num_tokens, upstream.delay_s = 30, 0.1
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            await client.get("/health")
            num_before = upstream.num_tokens_sent
            stream = asyncio.create_task(client.post(CHAT, json=BODY | {"stream": True}, headers=bearer(key)))
            await eventually(lambda: upstream.num_tokens_sent > num_before + 2)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            async with httpx.AsyncClient(base_url=url, timeout=5) as other:
                ready = await other.get("/ready")
                assert (ready.status_code, ready.json()["reasons"]) == (503, ["draining: this process is about to end"])
                assert (await other.get("/health")).status_code == 200
                assert (await other.get("/v1/models", headers=bearer(key))).status_code == 200
            reply = await stream
        assert reply.content == upstream.stream_bytes(with_usage=False)
        out, err = await asyncio.to_thread(process.communicate, timeout=15)
        assert process.returncode == 0, err
    async with engine.connect() as connection:
        (num_rows,) = (await connection.exec_driver_sql("SELECT count(*) FROM usage_ledger")).one()
    num_logged = sum(json.loads(line)["event"] == "request" for line in out.splitlines())
    assert num_logged == 51
    assert num_rows == 51


async def test_a_parent_that_dies_takes_its_workers_along(
    upstream: Upstream, engine: AsyncEngine, postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    port = free_port()
    env = environment(postgres_url, valkey_url, tmp_path)
    with gateway_process(env, "--port", str(port), "--workers", "2") as process:
        await wait_until_ready(f"http://127.0.0.1:{port}", process)
        await eventually(lambda: len(children(process)) == 2)
        workers = children(process)
        process.kill()
        await eventually(lambda: not any(is_running(pid) for pid in workers), timeout_s=15)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_that_cannot_start_say_why_once_and_end(valkey_url: str, tmp_path: Path) -> None:
    env = environment("postgresql://user:hunter2@127.0.0.1:1/x", valkey_url, tmp_path)
    began = time.monotonic()
    with gateway_process(env, "--port", "0", "--workers", "2") as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"the database cannot be read" in err
    assert b"hunter2" not in err
    assert time.monotonic() - began < 20


def test_pages_are_merged_family_by_family() -> None:
    page = '# HELP a_total A.\n# TYPE a_total counter\na_total{x="1"} 2.0\n# HELP g G.\n# TYPE g gauge\ng 3.0\n'
    assert merge({"0": page, "1": page}).splitlines() == [
        "# HELP a_total A.",
        "# TYPE a_total counter",
        'a_total{worker="0",x="1"} 2.0',
        'a_total{worker="1",x="1"} 2.0',
        "# HELP g G.",
        "# TYPE g gauge",
        'g{worker="0"} 3.0',
        'g{worker="1"} 3.0',
    ]
