"""A span for each API call: from its submission to its last output."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from descant_engine.request_stream import RequestStream
from descant_server.translate import EngineCall
from descant_server.usage_book import total_of
from descant_wire.tracing import Tracer


@contextmanager
def traced(tracer: Tracer | None, call: EngineCall, model: str, streams: Sequence[RequestStream]) -> Iterator[None]:
    """`with` it around a call; `streams` are all that it has submitted by the end. Nothing without a tracer."""
    if tracer is None:
        yield
        return
    operation = "chat" if call.prompt_field == "messages" else "text_completion"
    span = tracer.start(operation, call.adapter or model, call.traceparent, is_client=False)
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
