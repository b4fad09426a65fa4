"""Traces of requests across gateway and engine, by OpenTelemetry's GenAI conventions; off unless an endpoint is given.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/. No span holds a prompt, a reply or a header's value.
OpenTelemetry is imported only when a tracer is opened: the extra `otel` of gateway and server brings it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

TRACEPARENT: Final = "traceparent"
OPERATIONS: Final[Mapping[str, str]] = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""gen_ai.operation.name by path."""

Attributes = Mapping[str, str | int]


class TracingUnavailable(Exception):
    """An endpoint for traces was given, and OpenTelemetry is not installed."""


class Span:
    """One request's part of a trace, until `end`."""

    __slots__ = ("_span",)

    def __init__(self, span: "OtelSpan") -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """For whoever carries the request on (https://www.w3.org/TR/trace-context/)."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def end(self, attributes: Attributes, error: str = "") -> None:
        """`error`: a kind of failure, never a message."""
        from opentelemetry.trace import StatusCode

        self._span.set_attributes(attributes)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracer:
    """Owns the exporter, which sends in batches from a thread of its own."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("descant")

    def start(self, operation: str, model: str, traceparent: str, *, is_client: bool) -> Span:
        """`traceparent`: of who sent the request, or nothing; one that is malformed begins a new trace."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({TRACEPARENT: traceparent}) if traceparent else None
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "descant",
            "gen_ai.request.model": model,
        }
        kind = SpanKind.CLIENT if is_client else SpanKind.SERVER
        return Span(self._tracer.start_span(f"{operation} {model}", context=context, kind=kind, attributes=attributes))

    def close(self) -> None:
        """Sends what waits, for at most some seconds."""
        self._provider.force_flush(5000)
        self._provider.shutdown()


def open_tracer(endpoint: str, service_name: str) -> Tracer:
    """`endpoint`: where OTLP over HTTP is taken, such as http://collector:4318/v1/traces. Raises TracingUnavailable."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise TracingUnavailable(f"traces need OpenTelemetry: pip install '{service_name}[otel]'") from error
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracer(provider)
