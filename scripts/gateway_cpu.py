"""CPU milliseconds that one gateway process spends on a request, with everything on.

    python scripts/gateway_cpu.py [--seconds 8] [--connections 1,16,64] [--out docs/results/gateway-cpu.json]

Everything: HMAC keys, requests and tokens per minute limited on key and team, and at four levels (organization, team,
key, model) money a month, tokens a day and requests at once besides (Valkey), prices, routing, the relay, the ledger
(PostgreSQL), metrics, a JSON log line. The backend is nginx answering a fixed body, the load is wrk; without them, a
bare asyncio server and a bare client loop stand in. CPU time of the process, not latency: it holds on a busy machine.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from gateway_parts import REQUEST, Target, backend, cpu_seconds, gateway, rss_mb

from descant_bench.commit import git_commit

WRK = """
wrk.method = "POST"
wrk.body = '{body}'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
"""


@dataclass(frozen=True)
class Load:
    """What one run of load came to."""

    connections: int
    requests: int
    errors: int
    rps: float
    p50_ms: float
    p99_ms: float
    cpu_ms_per_request: float


class Answered(NamedTuple):
    """What the clients of a load saw."""

    requests: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float


def measure(target: Target, connections: int, seconds: int, folder: Path) -> Load:
    run_load(target, connections, 2, folder)
    return measure_warm(target, connections, seconds, folder)


def measure_warm(target: Target, connections: int, seconds: int, folder: Path) -> Load:
    """Of a gateway that had such a load a moment ago."""
    before = cpu_seconds(target.pid)
    answered = run_load(target, connections, seconds, folder)
    cpu_ms = (cpu_seconds(target.pid) - before) * 1000
    if answered.requests == 0:
        raise SystemExit(f"no request of {connections} connections was answered within {seconds} s")
    return Load(
        connections=connections,
        requests=answered.requests,
        errors=answered.errors,
        rps=round(answered.requests / answered.seconds, 1),
        p50_ms=round(answered.p50_ms, 2),
        p99_ms=round(answered.p99_ms, 2),
        cpu_ms_per_request=round(cpu_ms / answered.requests, 3),
    )


def run_load(target: Target, connections: int, seconds: int, folder: Path) -> Answered:
    wrk = shutil.which("wrk")
    if wrk is None:
        return asyncio.run(own_load(target, connections, seconds))
    script = folder / "post.lua"
    script.write_text(WRK.format(body=REQUEST, key=target.key))
    command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    out = subprocess.run(
        [*command, f"{target.url}/v1/chat/completions"], check=True, capture_output=True, text=True
    ).stdout
    requests = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", out)
    assert requests is not None, out
    elapsed_s = float(requests[2]) * {"ms": 0.001, "s": 1.0, "m": 60.0}[requests[3]]
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    num_errors = int(errors[1]) if errors else 0
    return Answered(int(requests[1]), num_errors, elapsed_s, wrk_latency_ms(out, 50), wrk_latency_ms(out, 99))


def wrk_latency_ms(out: str, percent: int) -> float:
    found = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", out)
    assert found is not None, out
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


async def own_load(target: Target, connections: int, seconds: int) -> Answered:
    """Closed-loop clients on bare sockets: little, but enough to keep one gateway busy."""
    host, port = target.url.removeprefix("http://").split(":")
    message = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {target.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(REQUEST)}\r\n\r\n{REQUEST}"
    ).encode()
    times_s: list[float] = []
    errors = 0
    started = time.monotonic()

    async def client() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.monotonic() - started < seconds:
            sent_at = time.monotonic()
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            times_s.append(time.monotonic() - sent_at)
            errors += not head.startswith(b"HTTP/1.1 200")
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    times_s.sort()
    p50_s, p99_s = times_s[len(times_s) // 2], times_s[len(times_s) * 99 // 100]
    return Answered(len(times_s), errors, time.monotonic() - started, p50_s * 1000, p99_s * 1000)


def machine() -> str:
    names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--connections", default="1,16,64")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gateway-cpu.json"))
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="descant-cpu-")))
        url, kind = stack.enter_context(backend(folder))
        target = stack.enter_context(gateway(folder, url))
        loads = []
        for connections in map(int, options.connections.split(",")):
            loads.append(measure(target, connections, options.seconds, folder))
            print(loads[-1], flush=True)
        middle = loads[len(loads) // 2]
        result = {
            "cpu_ms_per_request": middle.cpu_ms_per_request,
            "p50_ms": middle.p50_ms,
            "p99_ms": middle.p99_ms,
            "rps": middle.rps,
            "connections": middle.connections,
            "rss_mb": round(rss_mb(target.pid), 1),
            "loads": [asdict(load) for load in loads],
            "backend": kind,
            "load_generator": "wrk" if shutil.which("wrk") else "own",
            "commit": git_commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": f"python scripts/gateway_cpu.py --seconds {options.seconds} --connections {options.connections}",
            "machine": machine(),
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
