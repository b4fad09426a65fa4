"""A batch beside interactive traffic, on two gateways and two engines' processes, each killed once in the middle.

    python -m tests.system.batch_run [--lines 2000] [--seconds 30]

Every line must be answered exactly once, and the ledger must hold exactly what the answers say. Times to first token
are compared with the same traffic without the batch.
"""

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from openai import APIError, AsyncOpenAI
from openai.types import Batch
from tests.system.faults.plant import MODEL, Plant, running_plant

CHAT = "/v1/chat/completions"
MAX_TOKENS = 8
NUM_CLIENTS = 4
LEASE_S = "3"
PATIENCE_S = 600.0


@dataclass
class Outcome:
    num_lines: int
    custom_ids: list[str]
    """Of all lines of the output and error files, in their order."""
    answered_tokens: int
    ledger_rows: int
    ledger_tokens: int
    seconds: float
    ttft_alone_ms: list[float]
    ttft_beside_ms: list[float]

    def check(self) -> None:
        """Raises AssertionError."""
        assert sorted(self.custom_ids) == sorted(f"c{number}" for number in range(self.num_lines))
        assert self.ledger_rows == self.num_lines
        assert self.ledger_tokens == self.answered_tokens


async def run(folder: Path, num_lines: int, alone_s: float) -> Outcome:
    async with running_plant(folder) as plant:
        client = await begin_client(plant)
        alone: list[float] = []
        async with _traffic(client, alone):
            await asyncio.sleep(alone_s)
        beside: list[float] = []
        begun = time.monotonic()
        async with _traffic(client, beside):
            batch = await begin(client, num_lines)
            done = await run_through_kills(plant, client, batch)
        seconds = time.monotonic() - begun
        return await outcome(plant, client, done, seconds, alone, beside)


async def begin_client(plant: Plant) -> AsyncOpenAI:
    """At the gateway that is not killed."""
    team = await plant.send("POST", "/teams", {"name": "batches"})
    issued = await plant.send("POST", "/keys", {"team_id": team["id"], "name": "k"})
    client = AsyncOpenAI(base_url=f"{plant.gateways[1].url}/v1", api_key=issued["api_key"], max_retries=0, timeout=30)
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(APIError):
                if [model.id async for model in client.models.list()]:
                    return client
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _traffic(client: AsyncOpenAI, ttft_ms: list[float]) -> AsyncIterator[None]:
    """People who chat. Whoever hits an engine that is being killed tries again, uncounted."""

    async def chat() -> None:
        while True:
            asked = time.monotonic()
            with contextlib.suppress(APIError):
                stream = await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=4, stream=True
                )
                is_first = True
                async for _ in stream:
                    if is_first:
                        ttft_ms.append(1000 * (time.monotonic() - asked))
                        is_first = False
            await asyncio.sleep(0.05)

    people = [asyncio.create_task(chat()) for _ in range(NUM_CLIENTS)]
    try:
        yield
    finally:
        for person in people:
            person.cancel()
        await asyncio.gather(*people, return_exceptions=True)


async def begin(client: AsyncOpenAI, num_lines: int) -> Batch:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": MAX_TOKENS}
    rows = [{"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body} for number in range(num_lines)]
    content = "\n".join(json.dumps(row) for row in rows).encode()
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


async def run_through_kills(plant: Plant, client: AsyncOpenAI, batch: Batch) -> Batch:
    victims = {1 / 3: plant.engines[0], 2 / 3: plant.gateways[0]}
    async with asyncio.timeout(PATIENCE_S):
        while batch.status not in ("completed", "failed", "expired"):
            counts = batch.request_counts
            share = counts.completed / counts.total if counts is not None and counts.total else 0.0
            for due in [due for due in victims if share >= due]:
                victim = victims.pop(due)
                await asyncio.to_thread(victim.kill)
                victim.start()
            await asyncio.sleep(0.1)
            batch = await client.batches.retrieve(batch.id)
    assert not victims, "the batch was over before both were killed"
    assert batch.status == "completed", batch
    return batch


async def outcome(
    plant: Plant, client: AsyncOpenAI, done: Batch, seconds: float, alone: list[float], beside: list[float]
) -> Outcome:
    ids, tokens = [], 0
    for file_id in filter(None, (done.output_file_id, done.error_file_id)):
        for line in (await client.files.content(file_id)).text.splitlines():
            row = json.loads(line)
            ids.append(row["custom_id"])
            tokens += row["response"]["body"].get("usage", {}).get("completion_tokens", 0)
    rows = [row for row in await plant.rows("request_id, completion_tokens") if row["request_id"].startswith(done.id)]
    assert done.request_counts is not None
    return Outcome(
        num_lines=done.request_counts.total,
        custom_ids=ids,
        answered_tokens=tokens,
        ledger_rows=len(rows),
        ledger_tokens=sum(row["completion_tokens"] for row in rows),
        seconds=seconds,
        ttft_alone_ms=sorted(alone),
        ttft_beside_ms=sorted(beside),
    )


def percentile(values: list[float], share: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the traffic without the batch")
    args = parser.parse_args()
    os.environ["DESCANT_BATCH_LEASE_S"] = LEASE_S
    with tempfile.TemporaryDirectory(prefix="descant-") as folder:
        ended = asyncio.run(run(Path(folder), args.lines, args.seconds))
    ended.check()
    print(f"{ended.num_lines} lines in {ended.seconds:.1f} s, each answered and booked once")
    for share in (0.5, 0.99):
        alone, beside = percentile(ended.ttft_alone_ms, share), percentile(ended.ttft_beside_ms, share)
        print(f"time to first token, p{share * 100:g}: {alone:.1f} ms alone, {beside:.1f} ms beside the batch")


if __name__ == "__main__":
    main()
