"""Offline throughput of the engine: one engine, any number of cases, nothing (de)tokenised.

    python -m descant_bench.throughput --model FOLDER --requests CASE.jsonl [CASE.jsonl ...] [--adapters FOLDER]
    python -m descant_bench.throughput --model FOLDER --num-prompts 1000 --input-len 512 --output-len 256
    python -m descant_bench.throughput --model FOLDER --dataset-name sharegpt --dataset-path FILE.json

A case has {"prompt_token_ids": [...], "max_tokens": n, "adapter": number or null} a line (see `recorded`); adapter 7 is
FOLDER/0007. Prints one JSON object a run (s, out_tok_s, total_tok_s, req_s over the whole call, prefill included) and
writes all of it with each case's median run to --output. A warm-up run compiles kernels, captures graphs and brings
adapters into memory; it is reported and left out of the median.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from descant_bench.ceilings import add_ceiling_options, ceilings
from descant_bench.engine_options import add_engine_options, engine_config
from descant_bench.environment import Environment, describe_environment, peak_memory_bytes
from descant_bench.online.dataset_options import add_dataset_options, dataset_requests
from descant_bench.online.prompts import TokenSource
from descant_bench.option_types import at_least
from descant_bench.recorded import RecordedRequest, read_requests
from descant_bench.replay import Replay, RunResult, median_run
from descant_bench.report_file import add_report_options, write_report
from descant_bench.step_work import Ceilings
from descant_engine.engine import Engine
from descant_engine.steady_heap import settle_heap
from descant_engine.text.tokenizer import Tokenizer, TokenizerError


@dataclass(frozen=True, slots=True)
class CaseResult:
    median: RunResult
    runs: tuple[RunResult, ...]
    warmup: tuple[RunResult, ...]
    peak_memory_bytes: int
    """Since the process started: the cases before this one count as well."""


@dataclass(frozen=True, slots=True)
class ThroughputReport:
    startup_s: float
    prepare_s: float | None
    """What a serving process does afterwards, while nobody waits: CUDA graphs. None: left to the runs."""
    environment: Environment
    options: dict[str, object]
    """The engine's, as `EngineConfig` names them."""
    cases: dict[str, CaseResult]


def measure_case(
    replay: Replay,
    requests: list[RecordedRequest],
    *,
    name: str,
    num_warmups: int,
    repeats: int,
    limits: Ceilings | None,
) -> CaseResult:
    runs = []
    for run in range(num_warmups + repeats):
        result = replay.run(requests, limits)
        label = f"warm-up {run}" if run < num_warmups else run - num_warmups
        print(json.dumps({"workload": name, "run": label} | asdict(result)), flush=True)
        runs.append(result)
    measured = runs[num_warmups:]
    peak = peak_memory_bytes(replay.config.device)
    return CaseResult(median_run(measured), tuple(measured), tuple(runs[:num_warmups]), peak)


def main() -> None:
    args = _parser().parse_args()
    config = engine_config(args, with_adapters=args.adapters is not None)
    asked = _cases(args, config.shape.vocab_size)
    limits = ceilings(args, config.device, config.dtype) if args.roofline else None
    start = time.perf_counter()
    replay = Replay(config, args.adapters)
    settle_heap()  # as a serving process does
    startup = round(time.perf_counter() - start, 1)
    prepare = prepare_s(replay.engine) if args.prepare else None
    print(json.dumps({"startup_s": startup, "prepare_s": prepare}), flush=True)
    cases: dict[str, CaseResult] = {}
    report = ThroughputReport(
        startup, prepare, describe_environment(config.device, args.commit), asdict(config.user), cases
    )
    for name, requests in asked:
        case = measure_case(replay, requests, name=name, num_warmups=args.warmups, repeats=args.repeats, limits=limits)
        cases[name] = case
        print(_summary(case.median), flush=True)
        if args.output is not None:  # after every case: what has been measured survives what breaks later
            write_report(args.output, report)
    replay.engine.close()


def prepare_s(engine: Engine) -> float:
    start = time.perf_counter()
    while engine.prepare():
        pass
    return round(time.perf_counter() - start, 1)


def _cases(args: argparse.Namespace, vocab_size: int) -> Iterator[tuple[str, list[RecordedRequest]]]:
    """By name. Files are read as their turn comes; without any there is one case, of the data set that is asked for.

    Raises:
        SystemExit: that one cannot be made.
    """
    if args.requests:
        return ((path.stem, read_requests(path)) for path in args.requests)
    try:
        return iter([(_dataset_name(args), list(_dataset(args, vocab_size)))])
    except (ValueError, OSError, TokenizerError) as error:
        raise SystemExit(str(error)) from error


def _dataset_name(args: argparse.Namespace) -> str:
    if args.dataset_name != "random":
        return f"{args.dataset_name}-{args.num_prompts}"
    return f"random-{args.random_input_len}in-{args.random_output_len}out-{args.num_prompts}"


def _dataset(args: argparse.Namespace, vocab_size: int) -> Iterator[RecordedRequest]:
    """The texts of a file are read by the model's own tokenizer."""
    rng = random.Random(args.seed)
    tokenizer = Tokenizer.load(args.model) if args.dataset_name == "sharegpt" else None
    source = TokenSource(rng, None, needs_text=False, vocab_size=vocab_size)
    for request in dataset_requests(args, source, tokenizer, rng):
        yield RecordedRequest(_token_ids(request.prompt, tokenizer), request.max_tokens)


def _token_ids(prompt: str | tuple[int, ...], tokenizer: Tokenizer | None) -> tuple[int, ...]:
    if isinstance(prompt, tuple):
        return prompt
    assert tokenizer is not None, "only a file's prompts are texts"
    return tuple(tokenizer.encode(prompt, add_special_tokens=False))


def _summary(run: RunResult) -> str:
    """vLLM's line."""
    return (
        f"Throughput: {run.req_s:.2f} requests/s, {run.total_tok_s:.2f} total tokens/s, "
        f"{run.out_tok_s:.2f} output tokens/s"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=Path, nargs="+", default=[], metavar="CASE.jsonl")
    parser.add_argument("--adapters", type=Path, metavar="FOLDER", help="with a folder 0000, 0001, ... an adapter")
    parser.add_argument("--repeats", type=at_least(1), default=3, help="runs of each case after the warm-ups")
    parser.add_argument("--warmups", type=at_least(0), default=1)
    parser.add_argument("--prepare", action="store_true", help="capture CUDA graphs first, for latencies' sake")
    parser.add_argument("--roofline", action="store_true", help="compare each run with what its bytes allow")
    add_report_options(parser, "--output-json")
    add_dataset_options(parser.add_argument_group("prompts", "where there are no recorded requests"))
    add_engine_options(parser)
    add_ceiling_options(parser)
    return parser


if __name__ == "__main__":
    main()
