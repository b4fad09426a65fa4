"""The figures as the lines that vLLM's users know, and as its result file's fields."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from descant_bench.online.metrics import METRIC_TITLES, Distribution, ServingMetrics

WIDTH = 50


def print_metrics(metrics: ServingMetrics, shown: Sequence[str], settings: Mapping[str, Any], out: TextIO) -> None:
    """`shown`: the latencies, by the keys of METRIC_TITLES."""
    for line in _lines(metrics, shown, settings):
        print(line, file=out)


def result_fields(metrics: ServingMetrics) -> dict[str, Any]:
    """By the names of vLLM's --save-result."""
    fields: dict[str, Any] = {
        "duration": metrics.duration,
        "completed": metrics.completed,
        "failed": metrics.failed,
        "total_input_tokens": metrics.total_input,
        "total_output_tokens": metrics.total_output,
        "request_throughput": metrics.request_throughput,
        "request_goodput": metrics.goodput,
        "output_throughput": metrics.output_throughput,
        "total_token_throughput": metrics.total_throughput,
        "max_concurrent_requests": metrics.peak_concurrency,
    }
    for name, latency in metrics.latencies.items():
        fields |= {f"mean_{name}_ms": latency.mean, f"median_{name}_ms": latency.median, f"std_{name}_ms": latency.std}
        fields |= {f"p{share:g}_{name}_ms": value for share, value in latency.percentiles.items()}
    return fields


def _lines(metrics: ServingMetrics, shown: Sequence[str], settings: Mapping[str, Any]) -> Iterator[str]:
    yield f"{' Serving Benchmark Result ':=^{WIDTH}}"
    yield _line("Successful requests:", metrics.completed)
    yield _line("Failed requests:", metrics.failed)
    if settings.get("max_concurrency") is not None:
        yield _line("Maximum request concurrency:", settings["max_concurrency"])
    if settings.get("request_rate", float("inf")) != float("inf"):
        yield _line("Request rate configured (RPS):", float(settings["request_rate"]))
    yield _line("Benchmark duration (s):", metrics.duration)
    yield _line("Total input tokens:", metrics.total_input)
    yield _line("Total generated tokens:", metrics.total_output)
    yield _line("Request throughput (req/s):", metrics.request_throughput)
    if metrics.goodput is not None:
        yield _line("Request goodput (req/s):", metrics.goodput)
    yield _line("Output token throughput (tok/s):", metrics.output_throughput)
    yield _line("Peak concurrent requests:", metrics.peak_concurrency)
    yield _line("Total token throughput (tok/s):", metrics.total_throughput)
    for name in shown:
        yield from _latency_lines(name, metrics.latencies[name])
    yield "=" * WIDTH


def _latency_lines(name: str, latency: Distribution) -> Iterator[str]:
    yield f"{METRIC_TITLES[name]:-^{WIDTH}}"
    yield _line(f"Mean {name.upper()} (ms):", latency.mean)
    yield _line(f"Median {name.upper()} (ms):", latency.median)
    for share, value in latency.percentiles.items():
        yield _line(f"P{share:g} {name.upper()} (ms):", value)


def _line(label: str, value: float) -> str:
    return f"{label:<40} {value:<10.2f}" if isinstance(value, float) else f"{label:<40} {value:<10}"
