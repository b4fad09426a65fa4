"""A batch beside people who chat, on a real engine with a real model, two gateways, PostgreSQL and Valkey.

`python -m tests.system.batch_beside [MODEL] [LINES] [SECONDS] [RATE] [OUTPUT]` from the repository's root; MODEL is
`smollm2` or `random`, OUTPUT a file for the figures as JSON. A batch of LINES is let run and held in turns, SECONDS
each, so that a noisy machine is as noisy for both; then it runs to its end, with the engine and a gateway killed on the
way. Every line must be answered once, and the ledger must hold what the answers say.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import aiohttp
import asyncpg
from openai import AsyncOpenAI
from openai.types import Batch
from tests.system.batch_run import LEASE_S, begin, begin_client, outcome, percentile, run_through_kills
from tests.system.faults.plant import MODEL, Plant, running_plant

from descant_bench.environment import describe_environment
from descant_cli.up.options import find_model

NUM_PHASES = 6
"""Of either kind."""
SETTLE_S = 3.0
"""At the beginning of a phase, not counted."""
MAX_TOKENS = 16
SETTINGS = {
    "DESCANT_INTERNAL_KEY": "k" * 32,
    "DESCANT_BATCH_LEASE_S": LEASE_S,
    "DESCANT_UPSTREAM_FIRST_BYTE_TIMEOUT_S": "120",
    "DESCANT_UPSTREAM_IDLE_TIMEOUT_S": "120",
    "DESCANT_UPSTREAM_DEADLINE_S": "300",
}
QUESTIONS = ("What is the capital of France?", "Name three uses of a paper clip.", "Why is the sky blue?")


SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}
"""Of random weights, for machines that have too little time for SmolLM2; its tokenizer and template are SmolLM2's."""


def engine_command(model: str) -> Callable[[int, Path], list[str]]:
    """`model` is `smollm2` or `random`."""

    def command(port: int, journal: Path) -> list[str]:
        smollm2 = str(find_model(None)[0])
        options = ["--port", str(port), "--served-model-name", MODEL, "--device", "cpu", "--max-model-len", "512"]
        if model == "smollm2":
            return [sys.executable, "-m", "descant_server", smollm2, *options]
        folder = journal.with_suffix(".model")
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(SHAPE))
        options += ["--tokenizer", smollm2, "--load-format", "dummy", "--dtype", "float32"]
        return [sys.executable, "-m", "descant_server", str(folder), *options]

    return command


@dataclass
class Chats:
    """Open-loop: people come at random, whether or not those before them have been answered."""

    url: str
    api_key: str
    rate: float
    ttft_ms: list[float] = field(default_factory=list)
    num_failed: int = 0

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        source = asyncio.create_task(self._come())
        try:
            yield
        finally:
            source.cancel()
            await asyncio.gather(source, return_exceptions=True)

    async def _come(self) -> None:
        generator = random.Random(len(self.ttft_ms))
        headers = {"authorization": f"Bearer {self.api_key}"}
        async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(generator.expovariate(self.rate))
                group.create_task(self._chat(session, generator.choice(QUESTIONS)))

    async def _chat(self, session: aiohttp.ClientSession, question: str) -> None:
        asked = time.monotonic()
        messages = [{"role": "user", "content": f"{question} ({asked})"}]
        body = {"model": MODEL, "messages": messages, "max_tokens": MAX_TOKENS, "stream": True}
        try:
            async with session.post(f"{self.url}/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                is_first = True
                async for line in response.content:
                    if is_first and b'"content":' in line and b'"content":""' not in line:
                        self.ttft_ms.append(1000 * (time.monotonic() - asked))
                        is_first = False
        except (aiohttp.ClientError, TimeoutError):
            self.num_failed += 1  # the engine is being killed


@dataclass
class Phase:
    with_batch: bool
    ttft_p50_ms: float
    ttft_p99_ms: float
    num_chats: int
    lines_per_s: float


async def run_phase(
    plant: Plant, client: AsyncOpenAI, batch: Batch, chats: Chats, seconds: float, with_batch: bool
) -> tuple[Phase, list[float]]:
    await _let_run(plant, batch, with_batch)
    await asyncio.sleep(SETTLE_S)
    first, begun, before = len(chats.ttft_ms), time.monotonic(), await _num_done(client, batch)
    await asyncio.sleep(seconds)
    ttft = sorted(chats.ttft_ms[first:])
    lines_per_s = (await _num_done(client, batch) - before) / (time.monotonic() - begun)
    p50, p99 = (round(percentile(ttft, share), 1) for share in (0.5, 0.99))
    return Phase(with_batch, p50, p99, len(ttft), round(lines_per_s, 2)), ttft


async def _let_run(plant: Plant, batch: Batch, runs: bool) -> None:
    """Whether its lines may be claimed."""
    connection = await asyncpg.connect(plant.postgres_url, timeout=10)
    try:
        turn = "now()" if runs else "'infinity'"
        await connection.execute(f"UPDATE batches SET next_at = {turn} WHERE id = $1", batch.id)
    finally:
        await connection.close()


async def _num_done(client: AsyncOpenAI, batch: Batch) -> int:
    counts = (await client.batches.retrieve(batch.id)).request_counts
    return 0 if counts is None else counts.completed


async def measure(plant: Plant, num_lines: int, seconds: float, rate: float) -> dict[str, object]:
    client = await begin_client(plant)
    chats = Chats(plant.gateways[1].url, client.api_key, rate)
    samples: dict[bool, list[float]] = {False: [], True: []}
    phases = []
    batch = await begin(client, num_lines)
    begun = time.monotonic()
    async with chats.going_on():
        await asyncio.sleep(2 * SETTLE_S)
        for number in range(2 * NUM_PHASES):
            phase, ttft = await run_phase(plant, client, batch, chats, seconds, number % 2 == 1)
            samples[phase.with_batch] += ttft
            phases.append(phase)
            print(json.dumps(asdict(phase)), flush=True)
        result = _first_tokens(phases, samples, rate)
        print(json.dumps(result), flush=True)
        done = await run_through_kills(plant, client, await client.batches.retrieve(batch.id))
    ended = await outcome(plant, client, done, time.monotonic() - begun, [], [])
    ended.check()
    result["batch"] = {
        "lines": ended.num_lines,
        "seconds": round(ended.seconds, 1),
        "kills": {"engine": plant.engines[0].num_starts - 1, "gateway": plant.gateways[0].num_starts - 1},
        "answered_once": len(set(ended.custom_ids)),
        "ledger_rows": ended.ledger_rows,
        "answered_tokens": ended.answered_tokens,
        "ledger_tokens": ended.ledger_tokens,
    }
    return result


def _first_tokens(phases: list[Phase], samples: dict[bool, list[float]], rate: float) -> dict[str, object]:
    p50, p99 = ({kind: percentile(sorted(samples[kind]), share) for kind in samples} for share in (0.5, 0.99))
    return {
        "phases": [asdict(phase) for phase in phases],
        "chats_per_s": rate,
        "num_chats": {"without": len(samples[False]), "with": len(samples[True])},
        "ttft_p50_ms": {"without": round(p50[False], 1), "with": round(p50[True], 1)},
        "ttft_p99_ms": {"without": round(p99[False], 1), "with": round(p99[True], 1)},
        "p99_ratio": round(p99[True] / p99[False], 3),
    }


async def run(model: str, num_lines: int, seconds: float, rate: float) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="descant-") as folder:
        async with running_plant(Path(folder), num_engines=1, engine=engine_command(model), settings=SETTINGS) as plant:
            return await measure(plant, num_lines, seconds, rate)


def main(
    model: str = "random", num_lines: str = "2000", seconds: str = "30", rate: str = "5", output: str | None = None
) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    command = f"python -m tests.system.batch_beside {model} {num_lines} {seconds} {rate}"
    environment = asdict(replace(describe_environment("cpu"), command=command))
    result = asyncio.run(run(model, int(num_lines), float(seconds), float(rate)))
    text = json.dumps(environment | {"cores": os.cpu_count(), "model": model} | result, indent=1)
    if output is not None:
        Path(output).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
