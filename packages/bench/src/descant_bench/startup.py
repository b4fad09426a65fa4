"""From the start of a process to an engine that is ready, and to the first token of a request.

    descant bench startup --model FOLDER --num-iters 3

Every iteration is a Python process of its own, its imports included. The first one on a machine also fills caches
(kernels, files), and is reported apart from the others.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from descant_bench.engine_options import add_engine_options, engine_config
from descant_bench.environment import describe_environment
from descant_bench.option_types import at_least
from descant_bench.report_file import write_report

ONE_START_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds since the process was asked for."""

    ready_s: float
    first_token_s: float


def measure_start(options: list[str]) -> Start:
    """Raises SystemExit, with what it printed, if the process fails."""
    asked = time.time()
    command = [sys.executable, "-m", "descant_bench.startup", "--in-this-process", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ONE_START_SECONDS)
    if done.returncode:
        raise SystemExit(f"the engine did not start: {done.stderr.strip() or done.stdout.strip()}")
    times = json.loads(done.stdout.splitlines()[-1])
    return Start(times["ready_at"] - asked, times["first_token_at"] - asked)


def start_here(args: argparse.Namespace) -> None:
    """Prints when the engine was ready and when its first token came, by the wall clock, for the process that asked."""
    from descant_bench.recorded import RecordedRequest
    from descant_bench.replay import Replay

    replay = Replay(engine_config(args, with_adapters=False), None)
    ready_at = time.time()
    replay.run([RecordedRequest((1, 2, 3, 4), 1)])
    print(json.dumps({"ready_at": ready_at, "first_token_at": time.time()}))
    replay.engine.close()


def main() -> None:
    args = _parser().parse_args()
    if args.in_this_process:
        start_here(args)
        return
    options = _engine_words(sys.argv[1:])
    starts = [measure_start(options) for _ in range(args.num_iters)]
    later = starts[1:] or starts
    print(f"First startup time: {starts[0].ready_s:.2f} seconds ({starts[0].first_token_s:.2f} to the first token)")
    for name, values in (
        ("startup time", [start.ready_s for start in later]),
        ("time to the first token", [start.first_token_s for start in later]),
    ):
        print(f"Median {name}: {statistics.median(values):.2f} seconds")
    if args.output_json is not None:
        device = engine_config(args, with_adapters=False).device
        report = {"starts": starts, "environment": describe_environment(device)}
        write_report(args.output_json, report)


def _engine_words(words: list[str]) -> list[str]:
    """The command line without what concerns the measurement alone."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--num-iters")
    own.add_argument("--output-json")
    return own.parse_known_args(words)[1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-iters", type=at_least(1), default=3)
    parser.add_argument("--output-json", type=Path, metavar="OUT.json")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    add_engine_options(parser)
    return parser


if __name__ == "__main__":
    main()
