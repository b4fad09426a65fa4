"""Latency of one batch, from its arrival to its last token, with the flags and output lines of `vllm bench latency`.

descant bench latency --model FOLDER --batch-size 8 --input-len 32 --output-len 128
"""

import argparse
from pathlib import Path

from descant_bench.engine_options import add_engine_options, engine_config
from descant_bench.environment import describe_environment
from descant_bench.option_types import at_least
from descant_bench.percentiles import percentile
from descant_bench.recorded import random_requests
from descant_bench.replay import Replay
from descant_bench.report_file import write_report
from descant_engine.steady_heap import settle_heap

PERCENTILES = (10, 25, 50, 75, 90, 99)


def measure(replay: Replay, args: argparse.Namespace) -> list[float]:
    """Seconds of each iteration after the warm-ups."""
    seconds = []
    for iteration in range(args.num_iters_warmup + args.num_iters):
        requests = random_requests(
            args.batch_size,
            args.input_len,
            args.output_len,
            vocab_size=replay.config.shape.vocab_size,
            seed=iteration,
        )
        result = replay.run(requests)
        if iteration >= args.num_iters_warmup:
            seconds.append(result.s)
    return seconds


def main() -> None:
    args = _parser().parse_args()
    config = engine_config(args, with_adapters=False)
    replay = Replay(config, None)
    settle_heap()  # as a serving process does
    seconds = measure(replay, args)
    replay.engine.close()
    average = sum(seconds) / len(seconds)
    shares = {share: percentile(seconds, share / 100) for share in PERCENTILES}
    print(f"Avg latency: {average} seconds")
    for share, value in shares.items():
        print(f"{share}% percentile latency: {value} seconds")
    if args.output_json is not None:
        report = {
            "avg_latency": average,
            "latencies": seconds,
            "percentiles": shares,
            "environment": describe_environment(config.device),
            "options": config.user,
        }
        write_report(args.output_json, report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=at_least(1), default=8)
    parser.add_argument("--input-len", type=at_least(1), default=32)
    parser.add_argument("--output-len", type=at_least(1), default=128)
    parser.add_argument("--num-iters-warmup", type=at_least(0), default=3)
    parser.add_argument("--num-iters", type=at_least(1), default=10)
    parser.add_argument("--output-json", type=Path, metavar="OUT.json")
    add_engine_options(parser)
    return parser


if __name__ == "__main__":
    main()
