"""Prometheus metrics by vLLM's names, so that its dashboards work here, and some of our own about adapters.

What the front sees of a request is counted as it happens; what the engine knows is read when somebody scrapes.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from descant_engine.cache.adapter_cache import AdapterTier
from descant_engine.outputs import RequestOutput
from descant_engine.request import FinishReason, RequestTimes
from descant_engine.scheduler.admission import QueueFull
from descant_engine.scheduler.stats import DraftStats, SchedulerStats

LABELS = ("model_name", "engine")
ENGINE_INDEX = "0"
MAX_ADAPTER_LABELS = 256
"""Adapters beyond these many share one label: a metric's cardinality must not follow its users."""
OTHER_ADAPTERS = "(other)"
BASE_MODEL = "(base)"

LATENCY_BUCKETS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640),
)
ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 40)
TOKEN_BUCKETS = tuple(multiple * 10**exponent for exponent in range(6) for multiple in (1, 2, 5))


PREEMPTION_BUCKETS = (0, 1, 2, 5, 10, 20, 50)
STAGES = {
    "queue": "From arrival in the engine to the first step.",
    "prefill": "From the first step to the first token.",
    "decode": "From the first token to the last.",
    "inference": "From the first step to the last token.",
}


class EngineView(NamedTuple):
    """The engine at the moment of a scrape."""

    stats: SchedulerStats
    num_blocks: int
    block_size: int
    adapter_names: dict[str, str]
    """Digest -> the name it is served by."""


class Metrics:
    """One per server. `view` gives the engine's present state, None while there is no engine."""

    def __init__(self, model_name: str, view: Callable[[], EngineView | None]) -> None:
        self._registry = CollectorRegistry()
        self._labels = (model_name, ENGINE_INDEX)
        self._adapter_labels: set[str] = set()
        self._registry.register(_EngineCollector(self._labels, view))
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that began to generate.")
        self.cached_tokens = self._counter("prompt_tokens_cached", "Those of them found in the prefix cache.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.ttft = self._histogram("time_to_first_token_seconds", "From request to first token.", TTFT_BUCKETS)
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two outputs of a request, per token.", ITL_BUCKETS
        )
        self.latency = self._histogram("e2e_request_latency_seconds", "From request to last token.", LATENCY_BUCKETS)
        self._stages = {
            name: self._histogram(f"request_{name}_time_seconds", documentation, LATENCY_BUCKETS)
            for name, documentation in STAGES.items()
        }
        self.preemptions = self._histogram(
            "request_num_preemptions", "How often a request lost its place in the batch.", PREEMPTION_BUCKETS
        )
        self.request_prompt_tokens = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", TOKEN_BUCKETS
        )
        self.request_generation_tokens = self._histogram(
            "request_generation_tokens", "Tokens generated for a request.", TOKEN_BUCKETS
        )
        self._success = Counter(
            "vllm:request_success", "Ended requests.", (*LABELS, "finished_reason"), registry=self._registry
        )
        self._rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused for a full queue.",
            (*LABELS, "reason"),
            registry=self._registry,
        )
        self._adapter_tokens = Counter(
            "descant:adapter_tokens", "Tokens by adapter.", (*LABELS, "adapter", "kind"), registry=self._registry
        )

    def request(self, adapter: str | None, started: float) -> "RequestMeter":
        """A meter for one engine request; `started` is time.monotonic() when the API call came in."""
        return RequestMeter(self, self._adapter_label(adapter), started)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def observe_stages(self, times: RequestTimes) -> None:
        """Of a request that has finished, each stage that it went through."""
        spans = {
            "queue": (times.arrived, times.scheduled),
            "prefill": (times.scheduled, times.first_token),
            "decode": (times.first_token, times.finished),
            "inference": (times.scheduled, times.finished),
        }
        for name, (start, end) in spans.items():
            if start is not None and end is not None:
                self._stages[name].observe(end - start)
        self.preemptions.observe(times.num_preemptions)

    def count_end(self, reason: FinishReason) -> None:
        self._success.labels(*self._labels, reason.value).inc()

    def count_rejection(self) -> None:
        self._rejections.labels(*self._labels, "max_num_queued_reqs").inc()

    def count_adapter_tokens(self, adapter_label: str, prompt_tokens: int, generation_tokens: int) -> None:
        self._adapter_tokens.labels(*self._labels, adapter_label, "prompt").inc(prompt_tokens)
        self._adapter_tokens.labels(*self._labels, adapter_label, "generation").inc(generation_tokens)

    def _adapter_label(self, adapter: str | None) -> str:
        if adapter is None:
            return BASE_MODEL
        if adapter not in self._adapter_labels and len(self._adapter_labels) >= MAX_ADAPTER_LABELS:
            return OTHER_ADAPTERS
        self._adapter_labels.add(adapter)
        return adapter

    def _counter(self, name: str, documentation: str) -> Counter:
        return Counter(f"vllm:{name}", documentation, LABELS, registry=self._registry).labels(*self._labels)

    def _histogram(self, name: str, documentation: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(f"vllm:{name}", documentation, LABELS, buckets=buckets, registry=self._registry)
        return histogram.labels(*self._labels)


class RequestMeter:
    """Counts one engine request, from `__enter__` to `__exit__`, whichever way it ends."""

    def __init__(self, metrics: Metrics, adapter_label: str, started: float) -> None:
        self._metrics = metrics
        self._adapter_label = adapter_label
        self._started = started
        self._last_output_at: float | None = None
        self._last: RequestOutput | None = None
        self._times: RequestTimes | None = None

    def __enter__(self) -> "RequestMeter":
        return self

    def saw(self, output: RequestOutput) -> None:
        now = time.monotonic()
        if self._last is None or self._last_output_at is None:
            self._metrics.ttft.observe(now - self._started)
        elif output.token_ids:
            # Outputs that the reader took late come merged: the time is shared by their tokens.
            self._metrics.inter_token.observe((now - self._last_output_at) / len(output.token_ids))
        self._last_output_at = now
        self._last = output
        self._times = output.times or self._times

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._last is None and isinstance(error, QueueFull):
            self._metrics.count_rejection()
            return
        if self._last is None:
            self._metrics.count_end(FinishReason.ERROR if isinstance(error, Exception) else FinishReason.ABORT)
            return
        self._count_usage(self._last)
        self._metrics.count_end(_end_of(self._last, error))

    def _count_usage(self, last: RequestOutput) -> None:
        metrics, usage = self._metrics, last.usage
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.cached_tokens.inc(usage.cached_tokens)
        metrics.generation_tokens.inc(usage.completion_tokens)
        metrics.request_prompt_tokens.observe(usage.prompt_tokens)
        metrics.request_generation_tokens.observe(usage.completion_tokens)
        metrics.count_adapter_tokens(self._adapter_label, usage.prompt_tokens, usage.completion_tokens)
        metrics.latency.observe(time.monotonic() - self._started)
        if self._times is not None:
            # An end that the engine did not decide, by a stop string or the client, is now.
            metrics.observe_stages(self._times._replace(finished=self._times.finished or time.monotonic()))


def _end_of(last: RequestOutput, error: BaseException | None) -> FinishReason:
    if last.finish_reason is not None:
        return last.finish_reason
    return FinishReason.ERROR if isinstance(error, Exception) else FinishReason.ABORT


class _EngineCollector(Collector):
    def __init__(self, labels: tuple[str, str], view: Callable[[], EngineView | None]) -> None:
        self._labels = labels
        self._view = view

    def collect(self) -> Iterable[Metric]:
        view = self._view()
        if view is None:
            return
        stats = view.stats
        yield self._gauge("vllm:num_requests_running", "Requests in the batch.", stats.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait.", stats.num_waiting)
        yield self._waiting_by_reason(stats)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the block pool in use, 0 to 1.", stats.block_usage)
        yield self._cache_config(view)
        yield self._count("vllm:prefix_cache_queries", "Tokens looked up.", stats.prefix_query_tokens)
        yield self._count("vllm:prefix_cache_hits", "Tokens found in the prefix cache.", stats.prefix_hit_tokens)
        yield self._count("vllm:num_preemptions", "Preemptions.", stats.num_preemptions)
        yield from self._drafts(stats.drafts)
        yield self._lora_requests(view)
        yield self._count("descant:adapter_loads", "Adapters loaded into the pool.", stats.num_adapter_loads)
        yield self._count("descant:adapter_evictions", "Adapters evicted from it.", stats.num_adapter_evictions)
        yield self._adapters_by_tier(stats)

    def _drafts(self, drafts: DraftStats) -> Iterable[Metric]:
        yield self._count("vllm:spec_decode_num_drafts", "Times that tokens were drafted.", drafts.num_drafts)
        yield self._count("vllm:spec_decode_num_draft_tokens", "Tokens drafted.", drafts.num_draft_tokens)
        yield self._count("vllm:spec_decode_num_accepted_tokens", "Those that were right.", drafts.num_accepted_tokens)
        name = "vllm:spec_decode_num_accepted_tokens_per_pos"
        family = CounterMetricFamily(name, "Those, by their place in the draft.", labels=(*LABELS, "position"))
        for position, count in enumerate(drafts.num_accepted_by_place):
            family.add_metric((*self._labels, str(position)), count)
        yield family

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, documentation, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _count(self, name: str, documentation: str, value: int) -> Metric:
        family = CounterMetricFamily(name, documentation, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _waiting_by_reason(self, stats: SchedulerStats) -> Metric:
        name, documentation = "vllm:num_requests_waiting_by_reason", "Requests that wait; deferred: for their adapter."
        family = GaugeMetricFamily(name, documentation, labels=(*LABELS, "reason"))
        deferred = stats.num_waiting_for_adapter
        family.add_metric((*self._labels, "capacity"), stats.num_waiting - deferred)
        family.add_metric((*self._labels, "deferred"), deferred)
        return family

    def _cache_config(self, view: EngineView) -> Metric:
        name, labels = "vllm:cache_config_info", (*LABELS, "block_size", "num_gpu_blocks")
        family = GaugeMetricFamily(name, "The block pool's size.", labels=labels)
        family.add_metric((*self._labels, str(view.block_size), str(view.num_blocks)), 1)
        return family

    def _lora_requests(self, view: EngineView) -> Metric:
        """vLLM's form: names in labels, the time as value. Routers read it to find who has an adapter at hand."""
        in_use = [adapter for adapter in view.stats.adapters if adapter.num_requests]
        running = [adapter for adapter in in_use if adapter.tier is AdapterTier.DEVICE]
        waiting = [adapter for adapter in in_use if adapter.tier is not AdapterTier.DEVICE]
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters with requests, by whether they are in the pool; the value is the time.",
            labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
        )
        names = [
            ",".join(sorted(view.adapter_names.get(each.digest, "") for each in group)[:MAX_ADAPTER_LABELS])
            for group in (waiting, running)
        ]
        family.add_metric((str(len(view.stats.adapters)), *names), time.time())
        return family

    def _adapters_by_tier(self, stats: SchedulerStats) -> Metric:
        family = GaugeMetricFamily("descant:adapters", "Adapters by residency tier.", labels=(*LABELS, "tier"))
        for tier in AdapterTier:
            count = sum(adapter.tier is tier for adapter in stats.adapters)
            family.add_metric((*self._labels, tier.value), count)
        return family
