"""What the gateway costs, beside LiteLLM in the same run: docs/results/gateway.json and gateway.md.

    python -m venv litellm && litellm/bin/pip install 'litellm[proxy]'
    python scripts/gateway_figures.py --litellm litellm [--seconds 8] [--out docs/results/gateway]

Ours has everything on (see gateway_cpu.py); LiteLLM has a master key and neither database nor Redis. One process each,
both up the whole time, loaded in turns. Whole replies come from nginx, the load is wrk; at 16 connections, where the
promise is, each gets nine short slices of load and its median slice counts, since machines swing. Streams come from a
backend that writes one chunk after the other with a pause, as engines do; a chunk's cost is what a reply of 50 chunks
takes more than one of 2, with what the idle process uses in the same time taken off.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import events_backend
import gateway_cpu
import gateway_parts
import httpx
from gateway_parts import Target
from gateway_report import FEW_CHUNKS, NUM_CHUNKS, PROMISED, SLICED_CONNECTIONS, Figures, Streams, page, summary

from descant_bench.commit import git_commit

CONNECTIONS = (1, 64)
NUM_SLICES = 9
STREAMS = (1, 16)
NUM_STARTS = 3
LITELLM_KEY = "sk-for-measuring-only"
ResultT = TypeVar("ResultT")


# Backends


@contextlib.contextmanager
def streaming_backend() -> Iterator[str]:
    port = gateway_parts.free_port()
    with gateway_parts.process([sys.executable, events_backend.__file__, str(port)]):
        yield f"http://127.0.0.1:{port}"


# LiteLLM


@contextlib.contextmanager
def litellm(venv: Path, folder: Path, backend_urls: dict[str, str]) -> Iterator[tuple[Target, float]]:
    """LiteLLM's proxy with one worker, and after how many seconds it answered."""
    port = gateway_parts.free_port()
    models = [
        {
            "model_name": model,
            "litellm_params": {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for model, url in backend_urls.items()
    ]
    config = {
        "model_list": models,
        "general_settings": {"master_key": LITELLM_KEY},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    path = folder / "litellm.json"  # which is YAML too
    path.write_text(json.dumps(config))
    command = [str(venv / "bin" / "litellm"), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
    env = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"} | {"LITELLM_LOG": "ERROR"}
    env["PATH"] = f"{venv.resolve() / 'bin'}:{env['PATH']}"
    started_at = time.monotonic()
    with gateway_parts.process([*command, "--num_workers", "1"], env) as running:
        target = Target(f"http://127.0.0.1:{port}", LITELLM_KEY, running.pid)
        wait_for_answer(target)
        yield target, time.monotonic() - started_at


def wait_for_answer(target: Target) -> None:
    deadline = time.monotonic() + 180
    headers = {"authorization": f"Bearer {target.key}"}
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{target.url}/v1/models", headers=headers).status_code == 200:
                return
        time.sleep(0.05)
    raise SystemExit("LiteLLM did not answer within 180 s")


def warm_up(target: Target) -> None:
    """The first requests import and open what later ones only use."""
    headers = {"authorization": f"Bearer {target.key}", "content-type": "application/json"}
    with httpx.Client(base_url=target.url, headers=headers, timeout=120) as client:
        for _ in range(20):
            client.post("/v1/chat/completions", content=gateway_parts.REQUEST).raise_for_status()
    asyncio.run(stream_replies(target, 1, FEW_CHUNKS, 1.0))


# Measuring


def cpu_ms(pid: int) -> float:
    """Of all threads, to the nanosecond; /proc/PID/stat counts in hundredths of a second."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e6


def idle_cpu_ms_per_s(pid: int, seconds: int) -> float:
    before = cpu_ms(pid)
    time.sleep(seconds)
    return (cpu_ms(pid) - before) / seconds


async def stream_replies(target: Target, num_streams: int, num_chunks: int, seconds: float) -> int:
    """Clients with one stream after the other; the number of replies."""
    host, port = target.url.removeprefix("http://").split(":")
    message = {"role": "user", "content": "Say hello to the team please"}
    body = json.dumps({"model": "s", "stream": True, "max_tokens": num_chunks, "messages": [message]})
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {target.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()
    end, num_replies = time.monotonic() + seconds, 0

    async def client(number: int) -> None:
        nonlocal num_replies
        await asyncio.sleep(number * events_backend.PAUSE_S / num_streams)  # not all at the same moment
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.monotonic() < end:
            writer.write(request)
            reply = await reader.readuntil(b"0\r\n\r\n")
            assert reply.startswith(b"HTTP/1.1 200"), reply
            assert reply.count(b'" token"') == num_chunks, reply
            num_replies += 1
        writer.close()

    await asyncio.gather(*(client(number) for number in range(num_streams)))
    return num_replies


def cpu_ms_per_reply(
    target: Target, num_streams: int, num_chunks: int, seconds: float, idle: float
) -> tuple[int, float]:
    started_at, before = time.monotonic(), cpu_ms(target.pid)
    replies = asyncio.run(stream_replies(target, num_streams, num_chunks, seconds))
    used = cpu_ms(target.pid) - before - idle * (time.monotonic() - started_at)
    return replies, used / replies


def measure_streams(target: Target, num_streams: int, seconds: int, idle: float) -> Streams:
    asyncio.run(stream_replies(target, num_streams, NUM_CHUNKS, 0.5))
    _, short_ms = cpu_ms_per_reply(target, num_streams, FEW_CHUNKS, seconds / 2, idle)
    replies, long_ms = cpu_ms_per_reply(target, num_streams, NUM_CHUNKS, seconds, idle)
    return Streams(
        streams=num_streams,
        replies=replies,
        cpu_ms_per_reply=round(long_ms, 3),
        cpu_ms_per_short_reply=round(short_ms, 3),
        cpu_ms_per_chunk=round((long_ms - short_ms) / (NUM_CHUNKS - FEW_CHUNKS), 4),
    )


def measure(targets: dict[str, tuple[Target, float]], seconds: int, folder: Path) -> dict[str, Figures]:
    """In turns, so that a moment in which the machine is busy hits both."""
    for target, _ in targets.values():
        warm_up(target)
    idle = {name: idle_cpu_ms_per_s(target.pid, seconds) for name, (target, _) in targets.items()}
    slices = measure_slices(targets, max(1, seconds // 2), folder)
    loads = in_turns(targets, CONNECTIONS, lambda target, count, _: gateway_cpu.measure(target, count, seconds, folder))
    streams = in_turns(
        targets, STREAMS, lambda target, count, name: measure_streams(target, count, seconds * 2, idle[name])
    )
    return {
        name: Figures(
            loads=loads[name],
            slices=slices[name],
            streams=streams[name],
            idle_cpu_ms_per_s=round(idle[name], 2),
            rss_mb=round(gateway_parts.rss_mb(target.pid), 1),
            ready_s=round(ready_s, 2),
        )
        for name, (target, ready_s) in targets.items()
    }


def measure_slices(
    targets: dict[str, tuple[Target, float]], seconds: int, folder: Path
) -> dict[str, list[gateway_cpu.Load]]:
    """Of `seconds` each. What wrk has under way when one ends is not counted, as at the end of any load."""
    for target, _ in targets.values():
        gateway_cpu.run_load(target, SLICED_CONNECTIONS, 2, folder)
    rounds = (SLICED_CONNECTIONS,) * NUM_SLICES
    return in_turns(targets, rounds, lambda target, count, _: gateway_cpu.measure_warm(target, count, seconds, folder))


def in_turns(
    targets: dict[str, tuple[Target, float]], counts: tuple[int, ...], run: Callable[[Target, int, str], ResultT]
) -> dict[str, list[ResultT]]:
    results: dict[str, list[ResultT]] = {name: [] for name in targets}
    for count in counts:
        for name, (target, _) in targets.items():
            results[name].append(run(target, count, name))
            print(name, results[name][-1], flush=True)
    return results


def time_to_ready(env: dict[str, str]) -> float:
    """Of another process on the same databases; the median of a few."""
    seconds = []
    for _ in range(NUM_STARTS):
        with gateway_parts.gateway_process(env) as (_, _, ready_s):
            seconds.append(ready_s)
    return statistics.median(seconds)


def version_of(venv: Path) -> str:
    code = "import importlib.metadata; print(importlib.metadata.version('litellm'))"
    return subprocess.run(
        [venv / "bin" / "python", "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def run(venv: Path, seconds: int) -> dict[str, object]:
    load_before = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="descant-figures-")))
        whole, kind = stack.enter_context(gateway_parts.backend(folder))
        backend_urls = {"m": whole, "s": stack.enter_context(streaming_backend())}
        env = stack.enter_context(gateway_parts.databases(folder))
        url, pid, _ = stack.enter_context(gateway_parts.gateway_process(env))
        ours = Target(url, gateway_parts.create_key(url, backend_urls), pid)
        ready_s = time_to_ready(env)
        theirs, their_ready_s = stack.enter_context(litellm(venv, folder, backend_urls))
        direct = gateway_cpu.run_load(Target(whole, "", 0), 1, seconds, folder)
        figures = measure({"descant": (ours, ready_s), "litellm": (theirs, their_ready_s)}, seconds, folder)
        return {
            **summary(figures["descant"], figures["litellm"], direct),
            "promised": PROMISED,
            "descant": asdict(figures["descant"]),
            "litellm": asdict(figures["litellm"]),
            "direct_p50_ms": direct.p50_ms,
            "direct_p99_ms": direct.p99_ms,
            "litellm_version": version_of(venv),
            "backend": kind,
            "load_average_before": round(load_before, 1),
            "load_average_after": round(os.getloadavg()[0], 1),
            "commit": git_commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": f"python scripts/gateway_figures.py --litellm litellm --seconds {seconds}",
            "machine": gateway_cpu.machine(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litellm", type=Path, help="the virtual environment that has it")
    parser.add_argument("--seconds", type=int, default=8, help="of each load; of a slice half as many")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gateway"), help="without .json and .md")
    options = parser.parse_args()
    if options.litellm is None:
        parser.error("--litellm is missing: the comparison is the point")
    result = run(options.litellm, options.seconds)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    options.out.with_suffix(".md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
