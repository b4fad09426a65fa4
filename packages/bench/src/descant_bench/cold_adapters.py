"""A recorded case whose adapters are all read from disk during the run, beside the same without adapters and with them
resident.

    python -m descant_bench.cold_adapters --model FOLDER --adapters FX --requests CASE.jsonl --max-lora-rank 8

First the same requests with other adapters of FX, so that kernels are compiled and graphs captured as in a server that
has been up for a minute; then base, cold, resident. Prints a JSON object a run, and for cold and resident a line for
every part of a second: steps, rows, prompt tokens, adapters read and copied, the longest step.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from descant_bench.engine_options import add_engine_options, engine_config
from descant_bench.recorded import RecordedRequest, read_requests
from descant_bench.replay import Replay
from descant_bench.throughput import prepare_s
from descant_bench.watched_methods import SCHEDULE, Function, wrapped
from descant_engine.scheduler.plan import AdapterMoveKind, StepPlan
from descant_engine.steady_heap import settle_heap


class TimedPlan(NamedTuple):
    at: float
    plan: StepPlan


@contextmanager
def timed_plans() -> Iterator[list[TimedPlan]]:
    plans: list[TimedPlan] = []

    def keep(schedule: Function) -> Function:
        def scheduled(*args: object) -> StepPlan:
            plan: StepPlan = schedule(*args)
            plans.append(TimedPlan(time.perf_counter(), plan))
            return plan

        return scheduled

    with wrapped(SCHEDULE, keep):
        yield plans


def other_adapters(requests: Sequence[RecordedRequest], known: Sequence[int]) -> list[RecordedRequest]:
    """The same requests, each adapter replaced by one that no request names."""
    named = sorted({request.adapter for request in requests if request.adapter is not None})
    others = sorted({*known} - {*named})
    if not others:
        raise SystemExit("the requests name every adapter; put some more into the folder")
    successor = {adapter: others[index % len(others)] for index, adapter in enumerate(named)}
    return [replace(r, adapter=None if r.adapter is None else successor[r.adapter]) for r in requests]


def timeline(plans: Sequence[TimedPlan], window_s: float) -> Iterator[str]:
    yield "     s  steps  rows/step  prompt tokens   read  copied  longest step ms"
    steps = list(zip(plans, [*plans[1:], plans[-1]], strict=True))
    first = plans[0].at
    for window in range(int((plans[-1].at - first) / window_s) + 1):
        inside = [pair for pair in steps if window == int((pair[0].at - first) / window_s)]
        yield _line(window * window_s, [one.plan for one, _ in inside], [after.at - one.at for one, after in inside])


def _line(at: float, plans: Sequence[StepPlan], seconds: Sequence[float]) -> str:
    scheduled = [plan.scheduled for plan in plans if plan.scheduled]
    rows = sum(len(rows) for rows in scheduled) / max(len(scheduled), 1)
    prompt = sum(row.num_scheduled_tokens for rows in scheduled for row in rows if row.num_scheduled_tokens > 1)
    moves = [move.kind for plan in plans for move in plan.adapter_moves]
    read, copied = moves.count(AdapterMoveKind.LOAD_HOST), moves.count(AdapterMoveKind.LOAD_DEVICE)
    longest = 1e3 * max(seconds, default=0.0)
    return f"{at:6.2f} {len(scheduled):6} {rows:10.1f} {prompt:14} {read:6} {copied:7} {longest:16.1f}"


def main() -> None:
    args = _parser().parse_args()
    requests = read_requests(args.requests)
    known = [int(folder.name) for folder in args.adapters.iterdir() if folder.name.isdigit()]
    replay = Replay(engine_config(args, with_adapters=True), args.adapters)
    settle_heap()
    print(json.dumps({"prepare_s": prepare_s(replay.engine)}), flush=True)
    base = [replace(request, adapter=None) for request in requests]
    rates: dict[str, float] = {}
    for name, case in (
        ("other adapters", other_adapters(requests, known)),
        ("base, first", base),
        ("base", base),
        ("cold", requests),
        ("resident", requests),
        ("base, again", base),
    ):
        with timed_plans() as plans:
            result = replay.run(case)
        rates[name] = result.out_tok_s
        print(json.dumps({"run": name, "s": round(result.s, 3), "out_tok_s": result.out_tok_s}), flush=True)
        if name in ("cold", "resident"):
            print("\n".join(timeline(plans, args.window)), flush=True)
    best = max(rates["base"], rates["base, again"])
    print(json.dumps({f"{name} of base": round(rates[name] / best, 3) for name in ("cold", "resident")}), flush=True)
    replay.engine.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=Path, required=True, metavar="CASE.jsonl")
    parser.add_argument("--adapters", type=Path, required=True, metavar="FX", help="with more adapters than are named")
    parser.add_argument("--window", type=float, default=0.5, help="seconds of a line")
    add_engine_options(parser)
    return parser


if __name__ == "__main__":
    main()
