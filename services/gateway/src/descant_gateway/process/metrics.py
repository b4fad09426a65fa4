"""Every metric of the gateway, named once. Labels come from the catalogue only, and of each at most so many."""

from functools import partial
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from descant_gateway.usage.record import UsageRecord

MAX_MODEL_LABELS: Final = 500
"""Thousands of adapters would be forty series each: those beyond are counted together."""
MAX_PRIORITY_LABELS: Final = 32
OTHER: Final = "other"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _OfModel(NamedTuple):
    """What is counted of one model's requests, whatever became of them: looked up by its labels once."""

    prompt_tokens: Counter
    completion_tokens: Counter
    duration: Histogram
    ttft: Histogram


class Metrics:
    """One registry an app, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: set[str] = set()
        self._priorities: set[str] = set()
        self._of_models: dict[str, _OfModel] = {}
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        seconds = partial(Histogram, registry=self.registry, buckets=_SECONDS)

        self._requests = counter("descant_gateway_requests", "Admitted requests.", ("model", "outcome"))
        what = "Requests answered with an error of the gateway's own."
        self._refused = counter("descant_gateway_refused", what, ("status", "code"))
        self._tokens = counter("descant_gateway_tokens", "Tokens charged.", ("model", "kind"))
        what = "From the first byte in to the last byte out."
        self._duration = seconds("descant_gateway_request_duration_seconds", what, ("model",))
        what = "From the first byte in to the first byte of the reply."
        self._ttft = seconds("descant_gateway_time_to_first_token_seconds", what, ("model",))
        self._in_flight = gauge("descant_gateway_requests_in_flight", "Requests that are being relayed.")

        what = "Requests that a limit in shadow mode would have refused."
        self._shadow_refused = counter("descant_gateway_shadow_refused", what, ("level", "kind", "model"))
        what = "Copies of requests for a shadow model, by what became of them."
        self._shadow_copies = counter("descant_gateway_shadow_copies", what, ("result",))
        what = "Warnings that a limit passed a threshold, by what became of them."
        self._warnings = counter("descant_gateway_limit_warnings", what, ("result",))
        self._queue_length = gauge("descant_gateway_queue_length", "Requests that wait for saturated backends.")
        what = "How long requests waited that had to, by what became of them."
        self._queue_wait = seconds("descant_gateway_queue_wait_seconds", what, ("priority", "result"))

    def shadow_refused(self, level: str, kind: str, model: str | None) -> None:
        """`model`: the one that the limit counts; None for a limit of everything together."""
        label = "" if model is None else _bounded(self._models, model, MAX_MODEL_LABELS)
        self._shadow_refused.labels(level, kind, label).inc()

    def shadow_copied(self, result: str) -> None:
        """`result`: answered, failed, or dropped before it was sent."""
        self._shadow_copies.labels(result).inc()

    def warned(self, result: str) -> None:
        """`result`: sent, failed or dropped."""
        self._warnings.labels(result).inc()

    def queued(self, length: int) -> None:
        self._queue_length.set(length)

    def waited(self, priority: int, result: str, seconds: float) -> None:
        """`result`: served, timed_out or left."""
        label = _bounded(self._priorities, str(priority), MAX_PRIORITY_LABELS)
        self._queue_wait.labels(label, result).observe(seconds)

    def admitted(self) -> None:
        self._in_flight.inc()

    def refused(self, status: int, code: str | None) -> None:
        self._refused.labels(str(status), code or "none").inc()

    def settled(self, record: UsageRecord) -> None:
        self._in_flight.dec()
        model = _bounded(self._models, record.model, MAX_MODEL_LABELS)
        self._requests.labels(model, record.outcome.value).inc()
        of_model = self._of_models.get(model) or self._begin(model)
        of_model.prompt_tokens.inc(record.prompt_tokens)
        of_model.completion_tokens.inc(record.completion_tokens)
        of_model.duration.observe(record.duration_ms / 1000)
        if record.ttft_ms is not None:
            of_model.ttft.observe(record.ttft_ms / 1000)

    def _begin(self, model: str) -> _OfModel:
        """`model` is a label: there are at most MAX_MODEL_LABELS and OTHER."""
        of_model = self._of_models[model] = _OfModel(
            self._tokens.labels(model, "prompt"),
            self._tokens.labels(model, "completion"),
            self._duration.labels(model),
            self._ttft.labels(model),
        )
        return of_model

    def render(self) -> bytes:
        return generate_latest(self.registry)


def _bounded(seen: set[str], label: str, most: int) -> str:
    """The label, or OTHER for one that comes after `most` others."""
    if label in seen:
        return label
    if len(seen) >= most:
        return OTHER
    seen.add(label)
    return label
