"""One API call under way: its requests in the engine, as one stream of (sample index, output).

The samples are in the order of the prompts, each prompt's together.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

from descant_engine.grammar.spec import GrammarRefused
from descant_engine.outputs import RequestOutput, chosen_samples
from descant_engine.serving.request_stream import GrammarUnmet, RequestStream
from descant_server.errors import ENGINE_ERRORS, from_engine
from descant_server.service import Service
from descant_server.structured_output import invalid_grammar
from descant_server.traces import traced
from descant_server.translate import EngineCall

Outputs = AsyncGenerator[tuple[int, RequestOutput], None]


async def generate(service: Service, call: EngineCall, call_id: str, charge: str) -> Outputs:
    """Submits the call's prompts and gives their outputs as they come. Closing it ends what is unfinished at once.

    `charge`: under which its usage is kept, see `usage_book`.

    Raises:
        ApiError: what the engine refused, or why it failed.
    """
    started = time.monotonic()
    engine = service.engine
    streams: list[RequestStream] = []
    try:
        async with AsyncExitStack() as stack:
            stack.enter_context(service.usage_book.entry(charge, streams))
            if service.tracer is not None:
                stack.enter_context(traced(service.tracer, call, service.config.base_names[0], streams))
            for index, prompt in enumerate(call.prompts):
                samples = await engine.submit_samples(
                    prompt,
                    call.params,
                    adapter=call.adapter,
                    request_id=f"{call_id}-{index}",
                    owner=call.owner,
                )
                streams += [await stack.enter_async_context(stream) for stream in samples]
            meters = [stack.enter_context(service.metrics.request(call.adapter, started)) for _ in streams]
            outputs = await stack.enter_async_context(aclosing(_interleave(streams)))
            async for index, output in outputs:
                meters[index].saw(output)
                yield index, output
    except (GrammarRefused, GrammarUnmet) as error:
        raise invalid_grammar(str(error), call.grammar_field) from None
    except ENGINE_ERRORS as error:
        raise from_engine(error, call.prompt_field, has_begun=bool(streams)) from error


async def _interleave(streams: Sequence[AsyncIterator[RequestOutput]]) -> Outputs:
    if len(streams) == 1:
        async for output in streams[0]:
            yield 0, output
        return
    waiting = {asyncio.ensure_future(anext(stream)): index for index, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            # In order: a prompt's first sample brings what the others share.
            for task in sorted(done, key=waiting.__getitem__):
                index = waiting.pop(task)
                try:
                    output = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(streams[index]))] = index
                yield index, output
    finally:
        for task in waiting:
            task.cancel()


async def collect(outputs: Outputs, num_samples: int) -> list[RequestOutput]:
    """Each sample's outputs joined into one. Closes `outputs`."""
    parts: list[list[RequestOutput]] = [[] for _ in range(num_samples)]
    async with aclosing(outputs):
        async for index, output in outputs:
            parts[index].append(output)
    return [_joined(each) for each in parts]


def _joined(parts: Sequence[RequestOutput]) -> RequestOutput:
    # Not one by one: that would copy a long text as often as it has parts.
    return replace(
        parts[-1],
        text="".join(part.text for part in parts),
        token_ids=tuple(token_id for part in parts for token_id in part.token_ids),
        logprobs=tuple(token for part in parts for token in part.logprobs),
        prompt_logprobs=tuple(token for part in parts for token in part.prompt_logprobs),
    )


def chosen(outputs: Sequence[RequestOutput], call: EngineCall) -> list[RequestOutput]:
    """Of all samples, complete, those that the answer shows."""
    size = call.params.num_samples
    groups = [outputs[first : first + size] for first in range(0, len(outputs), size)]
    return [output for group in groups for output in chosen_samples(group, call.params)]
