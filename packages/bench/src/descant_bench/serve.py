"""Online benchmark: load on any server with OpenAI's API, with the flags and output lines of `vllm bench serve`.

    descant bench serve --base-url http://127.0.0.1:8000 --model NAME --num-prompts 200 --request-rate 10

Prompts of random tokens are sent as token ids to the completions endpoint; with --tokenizer, or to the chat endpoint,
as text. Token counts come from the server's usage.
"""

import argparse
import asyncio
import os
import random
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from descant_bench.online.arrivals import arrival_times, choose_names
from descant_bench.online.client import ENDPOINTS, Target
from descant_bench.online.dataset_options import add_dataset_options, dataset_requests
from descant_bench.online.load import Arrival, LoadResult, run_load
from descant_bench.online.metrics import METRIC_TITLES, measure, parse_promises, samples
from descant_bench.online.prompts import DEFAULT_VOCAB_SIZE, SampleRequest, Tokenizer, TokenSource
from descant_bench.online.report import print_metrics, result_fields
from descant_bench.option_types import above_zero, at_least, json_object, percentiles
from descant_bench.report_file import write_report


def main() -> None:
    args = _parser().parse_args()
    try:
        shown, promises = _shown_metrics(args.percentile_metrics), parse_promises(args.goodput)
        arrivals = plan_arrivals(args)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    result = asyncio.run(_measure(args, arrivals))
    metrics = measure(result, args.metric_percentiles, promises)
    print_metrics(metrics, shown, vars(args), sys.stdout)
    for reason in sorted({record.error for record in result.records if record.error is not None})[:5]:
        print(f"failed: {reason}", file=sys.stderr)
    if args.save_result:
        path = _result_path(args)
        write_report(path, _settings(args) | result_fields(metrics) | _details(args, result))
        print(f"saved {path}", file=sys.stderr)
    if args.plot is not None:
        _plot(result, args.plot)
    if not metrics.completed:
        raise SystemExit("no request succeeded")


def plan_arrivals(args: argparse.Namespace) -> list[Arrival]:
    """Everything that chance decides, before the clock starts: the same seed gives the same load.

    Raises:
        ValueError: an option does not fit the others; the message says which.
    """
    rng = random.Random(args.seed)
    requests = list(_requests(args, rng))
    exponent = args.zipf_exponent if args.lora_popularity == "zipf" else 0.0
    names = choose_names(args.lora_modules or [args.model], len(requests), exponent, rng)
    times = arrival_times(len(requests), args.request_rate, args.burstiness, rng)
    return [Arrival(at, request, name) for at, request, name in zip(times, requests, names, strict=True)]


async def _measure(args: argparse.Namespace, arrivals: Sequence[Arrival]) -> LoadResult:
    target = _target(args)
    if args.num_warmups:
        await run_load(target, arrivals[: args.num_warmups], max_concurrency=args.max_concurrency)
    with tqdm(total=len(arrivals), disable=args.disable_tqdm, unit="req") as bar:
        return await run_load(
            target, arrivals, max_concurrency=args.max_concurrency, count_finished=lambda: bar.update(1)
        )


def _requests(args: argparse.Namespace, rng: random.Random) -> Iterator[SampleRequest]:
    tokenizer = _load_tokenizer(args.tokenizer)
    source = TokenSource(rng, tokenizer, needs_text=args.backend == "openai-chat", vocab_size=args.vocab_size)
    return dataset_requests(args, source, tokenizer, rng)


def _load_tokenizer(name: str | None) -> Tokenizer | None:
    if name is None:
        return None
    from descant_engine.text import tokenizer  # takes seconds to import

    return tokenizer.Tokenizer.load(name)


def _target(args: argparse.Namespace) -> Target:
    base = args.base_url or f"http://{args.host}:{args.port}"
    key = args.api_key or os.environ.get("OPENAI_API_KEY")
    sampling = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k")}
    extra: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None} | args.extra_body
    if args.ignore_eos:
        extra["ignore_eos"] = True
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return Target(base.rstrip("/") + (args.endpoint or ENDPOINTS[args.backend]), args.backend, headers, extra)


def _shown_metrics(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METRIC_TITLES]:
        raise ValueError(f"--percentile-metrics: {unknown[0]!r} is none of {', '.join(METRIC_TITLES)}")
    return names


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "backend": args.backend,
        "model_id": args.model,
        "tokenizer_id": args.tokenizer,
        "dataset_name": args.dataset_name,
        "num_prompts": args.num_prompts,
        "request_rate": "inf" if args.request_rate == float("inf") else args.request_rate,
        "burstiness": args.burstiness,
        "max_concurrency": args.max_concurrency,
        "lora_modules": args.lora_modules,
        "lora_popularity": args.lora_popularity,
        "seed": args.seed,
    }


def _details(args: argparse.Namespace, result: LoadResult) -> dict[str, Any]:
    if not args.save_detailed:
        return {}
    records = result.records
    return {
        "models": [record.model for record in records],
        "input_lens": [record.num_prompt_tokens for record in records],
        "output_lens": [record.num_output_tokens for record in records],
        "ttfts": [record.ttft for record in records],
        "itls": [record.chunk_gaps for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error or "" for record in records],
    }


def _result_path(args: argparse.Namespace) -> Path:
    rate = "inf" if args.request_rate == float("inf") else f"{args.request_rate:g}"
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = args.result_filename or f"{args.backend}-{rate}qps-{Path(args.model).name}-{stamp}.json"
    args.result_dir.mkdir(parents=True, exist_ok=True)
    path: Path = args.result_dir / name
    return path


def _plot(result: LoadResult, path: Path) -> None:
    from descant_bench.plots import MatplotlibMissing, plot_distributions

    series = samples([record for record in result.records if record.is_ok])
    named = {METRIC_TITLES[name]: values for name, values in series.items()}
    try:
        plot_distributions(named, path, unit="milliseconds")
    except MatplotlibMissing as missing:
        print(f"no plot: {missing}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_target_options(parser.add_argument_group("server"))
    _add_load_options(parser.add_argument_group("load"))
    add_dataset_options(parser.add_argument_group("prompts"))
    _add_result_options(parser.add_argument_group("results"))
    return parser


def _add_target_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", required=True, help="the model id that requests say")
    group.add_argument("--backend", default="openai", choices=list(ENDPOINTS), help="vllm is another name of openai")
    group.add_argument("--base-url", help="default: http://HOST:PORT")
    group.add_argument("--host", default="127.0.0.1")
    group.add_argument("--port", type=int, default=8000)
    group.add_argument("--endpoint", help="default: the backend's own")
    group.add_argument("--api-key", help="default: OPENAI_API_KEY of the environment")
    group.add_argument("--tokenizer", help="a folder or hub id; makes prompts text of exactly so many tokens")
    group.add_argument("--vocab-size", type=int, default=DEFAULT_VOCAB_SIZE, help="for token ids, without --tokenizer")
    group.add_argument("--lora-modules", nargs="+", metavar="NAME", help="model ids; each request names one of them")
    group.add_argument("--lora-popularity", default="uniform", choices=["uniform", "zipf"])
    group.add_argument("--zipf-exponent", type=float, default=1.0)


def _add_load_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--request-rate", type=above_zero, default=float("inf"), help="a second; inf sends all at once")
    group.add_argument("--burstiness", type=above_zero, default=1.0, help="1: Poisson; below: bursts; above: steadier")
    group.add_argument("--max-concurrency", type=at_least(1))
    group.add_argument("--num-warmups", type=at_least(0), default=0, help="requests before the clock starts")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--ignore-eos", action="store_true")
    group.add_argument("--temperature", type=float, default=0.0)
    group.add_argument("--top-p", type=float)
    group.add_argument("--top-k", type=int)
    group.add_argument(
        "--extra-body", type=json_object, default={}, metavar="JSON", help="further fields of every request"
    )


def _add_result_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--percentile-metrics", default="ttft,tpot,itl", help="of ttft,tpot,itl,e2el")
    group.add_argument("--metric-percentiles", type=percentiles, default=[99.0], help="for example 25,50,99")
    group.add_argument("--goodput", nargs="+", default=[], metavar="METRIC:MS", help="what a good request keeps")
    group.add_argument("--save-result", action="store_true")
    group.add_argument("--save-detailed", action="store_true", help="every request's times and text as well")
    group.add_argument("--result-dir", type=Path, default=Path())
    group.add_argument("--result-filename")
    group.add_argument("--plot", type=Path, metavar="FILE.svg", help="distributions of the latencies")
    group.add_argument("--disable-tqdm", action="store_true")


if __name__ == "__main__":
    main()
