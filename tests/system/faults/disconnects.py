"""Clients that leave at random, streaming and not, through a real gateway: nobody pays more or less than was generated.

    python -m tests.system.faults.disconnects [--requests 1000] [--out docs/results/disconnects.json]

The engine's journal says of each call when it ended and how many tokens it had generated; both are compared with when
the client left and with the ledger. Fails if a call went on for a second, or a charge is not what was generated.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import redis.asyncio
from tests.system.faults.counting_engine import PROMPT_TOKENS
from tests.system.faults.load import CHAT, Tenant, make_tenants
from tests.system.faults.plant import LEASE_S, MODEL, Plant, running_plant

from descant_bench.commit import git_commit

AT_ONCE = 40
MAX_TOKENS = 400
LONGEST_STAY_S = 0.6
BOOKED_WITHIN_S = 15.0


@dataclass
class Figures:
    num_requests: int
    num_begun: int = 0
    """Calls that the engine had begun; the others were cut before."""
    num_streams: int = 0
    num_whole: int = 0
    cancelled_s: dict[str, float] = field(default_factory=dict)
    """From when the client left until the engine had ended the call."""
    num_charges_off: int = 0
    """Ledger rows with other tokens than the engine generated."""
    num_rows_missing: int = 0
    num_reserved_afterwards: int = 0
    num_in_flight_afterwards: float = 0.0
    violations: list[str] = field(default_factory=list)


async def cut(plant: Plant, tenant: Tenant, name: str, dice: random.Random) -> float:
    """Asks, stays a moment and goes, with or without a goodbye. When it went, on time.monotonic()."""
    address = urlsplit(plant.gateways[0].url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    body = json.dumps({"model": MODEL, "messages": [], "max_tokens": MAX_TOKENS, "stream": dice.random() < 0.5})
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant.api_key}\r\nx-request-id: {name}\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}".encode()
    )
    await asyncio.sleep(dice.random() * LONGEST_STAY_S)
    left = time.monotonic()
    writer.transport.abort() if dice.random() < 0.5 else writer.close()
    return left


async def measure(plant: Plant, num_requests: int, seed: int = 7) -> Figures:
    figures, dice = Figures(num_requests), random.Random(seed)
    tenant = (await make_tenants(plant))["budget"]
    left: dict[str, float] = {}

    async def leave(name: str) -> None:
        left[name] = await cut(plant, tenant, name, dice)

    for start in range(0, num_requests, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, num_requests))
        await asyncio.gather(*(leave(f"cut-{number}") for number in numbers))
    await _compare(plant, left, figures)
    await _nothing_is_left(plant, tenant, figures)
    return figures


async def _compare(plant: Plant, left: dict[str, float], figures: Figures) -> None:
    deadline = time.monotonic() + BOOKED_WITHIN_S
    while True:
        booked = await plant.rows()
        rows = {row["request_id"]: row for row in booked if row["request_id"] in left}
        begun, ended = _journal(plant)
        charges = {row["charge_id"].hex for row in booked}
        if (begun == ended.keys() and begun <= charges) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    figures.num_rows_missing = len(begun - charges)
    figures.num_streams = sum(row["stream"] for row in rows.values())
    figures.num_whole = len(rows) - figures.num_streams
    waited = []
    for name, row in rows.items():
        charge = row["charge_id"].hex
        expected = (PROMPT_TOKENS, ended[charge][0]) if charge in ended else (0, 0)
        figures.num_charges_off += (row["prompt_tokens"], row["completion_tokens"]) != expected
        if charge in ended:
            waited.append(ended[charge][1] - left[name])
    figures.num_begun = len(waited)
    waited.sort()
    figures.cancelled_s = {
        f"p{share}": round(waited[min(len(waited) - 1, len(waited) * share // 100)], 4) for share in (50, 99, 100)
    }
    if figures.num_rows_missing or figures.num_charges_off:
        figures.violations.append(f"{figures.num_rows_missing} rows missing, {figures.num_charges_off} charges off")
    if waited[-1] >= 1.0:
        figures.violations.append(f"a call went on for {waited[-1]:.2f} s")


def _journal(plant: Plant) -> tuple[set[str], dict[str, tuple[int, float]]]:
    """The charges that were begun; what those that ended came to, and when."""
    begun, ended = set(), {}
    for number in range(len(plant.engines)):
        for line in plant.journal(number).read_text().splitlines():
            charge, tokens, at = json.loads(line)
            begun.add(charge)
            if tokens >= 0:
                ended[charge] = (tokens, at)
    return begun, ended


async def _nothing_is_left(plant: Plant, tenant: Tenant, figures: Figures) -> None:
    async with redis.asyncio.Redis.from_url(plant.valkey.url) as valkey, httpx.AsyncClient(trust_env=False) as client:
        deadline = time.monotonic() + 3 * LEASE_S
        while True:
            keys = [key async for key in valkey.scan_iter("*:reservation:*")]
            figures.num_reserved_afterwards = len(keys)
            if not keys or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
        lines = (await client.get(f"{plant.gateways[0].url}/metrics")).text.splitlines()
    name = "descant_gateway_requests_in_flight"
    found = [float(line.rsplit(" ", 1)[1]) for line in lines if line.partition("{")[0].partition(" ")[0] == name]
    figures.num_in_flight_afterwards = sum(found)
    if figures.num_reserved_afterwards or figures.num_in_flight_afterwards:
        figures.violations.append("something is still held")


async def run(num_requests: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="dsc-") as folder:
        async with running_plant(Path(folder), num_gateways=1, num_engines=1) as plant:
            return await measure(plant, num_requests)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    figures = asyncio.run(run(options.requests))
    result = asdict(figures) | {
        "command": f"python -m tests.system.faults.disconnects --requests {options.requests}",
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
    }
    text = json.dumps(result, indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n")
    print(text)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
