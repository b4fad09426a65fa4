"""From records to figures, by vLLM's definitions and names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from types import MappingProxyType
from typing import Final

from descant_bench.online.client import RequestRecord
from descant_bench.online.load import LoadResult
from descant_bench.percentiles import percentile

METRIC_TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ttft": "Time to First Token",
        "tpot": "Time per Output Token (excl. 1st token)",
        "itl": "Inter-token Latency",
        "e2el": "End-to-end Latency",
    }
)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Milliseconds."""

    mean: float
    median: float
    std: float
    percentiles: Mapping[float, float]

    @classmethod
    def of(cls, values: Sequence[float], shown: Sequence[float]) -> "Distribution":
        """`shown`: 99 is the 99th percentile. Zeros if there are no values."""
        known = values or [0.0]
        shares = {share: percentile(known, share / 100) for share in shown}
        return cls(fmean(known), percentile(known, 0.5), pstdev(known), shares)


@dataclass(frozen=True, slots=True)
class ServingMetrics:
    completed: int
    failed: int
    duration: float
    total_input: int
    total_output: int
    peak_concurrency: int
    goodput: float | None
    """Requests a second that kept every promise; None without promises."""
    latencies: Mapping[str, Distribution]
    """By the keys of METRIC_TITLES."""

    @property
    def request_throughput(self) -> float:
        return self.completed / self.duration

    @property
    def output_throughput(self) -> float:
        return self.total_output / self.duration

    @property
    def total_throughput(self) -> float:
        return (self.total_input + self.total_output) / self.duration


def measure(
    result: LoadResult, shown: Sequence[float] = (99.0,), promises: Mapping[str, float] | None = None
) -> ServingMetrics:
    """`promises`: milliseconds by metric, each of which a request must not exceed to be good."""
    good = [record for record in result.records if record.is_ok]
    series = samples(good)
    kept = sum(_keeps(record, promises or {}) for record in good)
    return ServingMetrics(
        completed=len(good),
        failed=len(result.records) - len(good),
        duration=result.duration,
        total_input=sum(record.num_prompt_tokens for record in good),
        total_output=sum(record.num_output_tokens for record in good),
        peak_concurrency=_peak_concurrency(result.records),
        goodput=kept / result.duration if promises else None,
        latencies={name: Distribution.of(values, shown) for name, values in series.items()},
    )


def samples(records: Sequence[RequestRecord]) -> dict[str, list[float]]:
    """Milliseconds, by metric."""
    return {
        "ttft": [1e3 * record.ttft for record in records],
        "tpot": [1e3 * tpot for record in records if (tpot := record.tpot) is not None],
        "itl": [1e3 * gap for record in records for gap in record.chunk_gaps],
        "e2el": [1e3 * record.latency for record in records],
    }


def parse_promises(words: Sequence[str]) -> dict[str, float]:
    """ "ttft:200" "tpot:20" -> milliseconds by metric. Raises ValueError for anything else."""
    promises: dict[str, float] = {}
    for word in words:
        name, _, limit = word.partition(":")
        if name not in ("ttft", "tpot", "e2el") or not limit:
            raise ValueError(f"--goodput {word}: must be ttft:MS, tpot:MS or e2el:MS")
        try:
            promises[name] = float(limit)
        except ValueError:
            raise ValueError(f"--goodput {word}: {limit!r} is no number of milliseconds") from None
    return promises


def _keeps(record: RequestRecord, promises: Mapping[str, float]) -> bool:
    actual = {"ttft": record.ttft, "tpot": record.tpot or 0.0, "e2el": record.latency}
    return all(1e3 * actual[name] <= limit for name, limit in promises.items())


def _peak_concurrency(records: Sequence[RequestRecord]) -> int:
    changes = [(record.start, 1) for record in records] + [(r.start + r.latency, -1) for r in records]
    peak = running = 0
    for _, change in sorted(changes):
        running += change
        peak = max(peak, running)
    return peak
