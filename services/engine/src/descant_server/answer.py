"""Answers a call with what the engine generates for it, in one piece or as server-sent events."""

import logging
from collections.abc import AsyncIterator

from litestar.response.base import ASGIResponse

from descant_engine.outputs import RequestOutput
from descant_server.answer_format import AnswerFormat, total_usage
from descant_server.bodies import EventStream, HttpRequest, charge_of, json_answer, unless_client_leaves
from descant_server.generation import Outputs, chosen, collect, generate
from descant_server.service import Service
from descant_server.translate import EngineCall
from descant_wire.errors import ApiError, server_error
from descant_wire.sse import DONE_EVENT, encode_event

_log = logging.getLogger("descant_server")


async def answer_whole(
    request: HttpRequest, service: Service, call: EngineCall, answer_format: AnswerFormat
) -> ASGIResponse:
    """Raises ApiError, or ClientLeft as soon as nobody waits any more."""
    outputs = generate(service, call, answer_format.id, charge_of(request))
    num_samples = len(call.prompts) * call.params.num_samples
    complete = await unless_client_leaves(request, collect(outputs, num_samples))
    usage = total_usage([output.usage for output in complete])
    return json_answer(answer_format.whole(chosen(complete, call), usage))


async def answer_stream(
    request: HttpRequest, service: Service, call: EngineCall, answer_format: AnswerFormat, *, with_usage: bool
) -> EventStream:
    """The response begins with the first output, so that what goes wrong before it still has a status of its own.

    Raises ApiError, or ClientLeft as soon as nobody waits any more.
    """
    outputs = generate(service, call, answer_format.id, charge_of(request))
    first = await unless_client_leaves(request, _first(outputs))
    return EventStream(_events(first, outputs, answer_format, with_usage=with_usage), outputs.aclose)


async def _first(outputs: Outputs) -> tuple[int, RequestOutput]:
    return await anext(outputs)


async def _events(
    first: tuple[int, RequestOutput], outputs: Outputs, answer_format: AnswerFormat, *, with_usage: bool
) -> AsyncIterator[bytes]:
    """What goes wrong from here on is an event, as the status is sent already; OpenAI's clients raise it."""
    index, output = first
    usage = {index: output.usage}
    yield answer_format.opening(output) + answer_format.events(index, output)
    try:
        async for index, output in outputs:
            usage[index] = output.usage
            if events := answer_format.events(index, output):
                yield events
        if with_usage:
            yield answer_format.usage_event(total_usage(usage.values()))
    except ApiError as error:
        yield encode_event(error.body)
    except Exception:
        _log.exception("a stream failed")
        yield encode_event(server_error().body)
    yield DONE_EVENT
