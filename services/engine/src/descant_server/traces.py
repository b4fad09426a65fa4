"""A span for each API call: from its submission to its last output."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from descant_engine.serving.request_stream import RequestStream
from descant_server.usage_book import total_of
from descant_wire.tracing import Tracer


class TracedCall(Protocol):
    """A call that generates, or one that pools."""

    @property
    def operation(self) -> str: ...
    @property
    def adapter(self) -> str | None: ...
    @property
    def traceparent(self) -> str: ...


@contextmanager
def traced(tracer: Tracer, call: TracedCall, model: str, streams: Sequence[RequestStream]) -> Iterator[None]:
    """`with` it around a call; `streams` are all that it has submitted by the end."""
    span = tracer.start(call.operation, call.adapter or model, call.traceparent, is_client=False)
    error = ""
    try:
        yield
    except BaseException as failure:
        error = type(failure).__name__
        raise
    finally:
        usage = total_of(streams)
        span.end(
            {
                "gen_ai.response.model": call.adapter or model,
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
            },
            "" if error in ("", "GeneratorExit") else error,
        )
