"""Every fault, under load, for as long as you like; or some of them.

    python -m tests.system.faults [--outage 60] [--clients 12] [--fault NAME ...] [--out docs/results/faults.json]

PostgreSQL and Valkey are real and start by themselves. Fails if anything that must hold did not.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.system.faults.fault_run import Report, run_fault
from tests.system.faults.faults import FAULTS, Fault
from tests.system.faults.load import make_tenants
from tests.system.faults.plant import Plant, running_plant

from descant_bench.commit import git_commit


async def run_all(
    plant: Plant, faults: Sequence[Fault], *, outage_s: float, num_clients: int = 12
) -> AsyncIterator[Report]:
    """One after the other on the same plant, which each must leave as it found it."""
    tenants = await make_tenants(plant)
    for fault in faults:
        yield await run_fault(plant, fault, tenants, outage_s=outage_s, num_clients=num_clients)
        if not fault.is_exact:
            tenants = await make_tenants(plant)


async def run(outage_s: float, num_clients: int, names: list[str]) -> list[Report]:
    faults = [fault for fault in FAULTS if fault.name in names or not names]
    reports = []
    with tempfile.TemporaryDirectory(prefix="dsc-") as folder:
        async with running_plant(Path(folder)) as plant:
            async for report in run_all(plant, faults, outage_s=outage_s, num_clients=num_clients):
                print(json.dumps(asdict(report)), file=sys.stderr, flush=True)
                reports.append(report)
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outage", type=float, default=60.0, help="seconds that each fault lasts")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--fault", action="append", default=[], choices=[fault.name for fault in FAULTS])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    reports = asyncio.run(run(options.outage, options.clients, options.fault))
    result = {
        "command": f"python -m tests.system.faults --outage {options.outage:g} --clients {options.clients}",
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "faults": [asdict(report) for report in reports],
    }
    text = json.dumps(result, indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n")
    print(text)
    return 1 if any(report.violations for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
