"""One API call under way: its requests in the engine, as one stream of (prompt index, output)."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

from descant_engine.outputs import RequestOutput
from descant_engine.request_stream import RequestStream
from descant_server.errors import ENGINE_ERRORS, from_engine
from descant_server.service import Service
from descant_server.translate import EngineCall

Outputs = AsyncGenerator[tuple[int, RequestOutput], None]


async def generate(service: Service, call: EngineCall, call_id: str, charge: str) -> Outputs:
    """Submits the call's prompts and gives their outputs as they come. Closing it ends what is unfinished at once.

    `charge`: under which its usage is kept, see `usage_book`.

    Raises:
        ApiError: what the engine refused, or why it failed.
    """
    started = time.monotonic()
    try:
        async with AsyncExitStack() as stack:
            streams: list[RequestStream] = []
            stack.enter_context(service.usage_book.entry(charge, streams))
            for index, prompt in enumerate(call.prompts):
                stream = await service.engine.submit(
                    prompt,
                    call.params,
                    adapter=call.adapter,
                    request_id=f"{call_id}-{index}",
                    tenant=call.tenant,
                    tenant_salt=call.tenant_salt,
                    priority=call.priority,
                )
                streams.append(await stack.enter_async_context(stream))
            meters = [stack.enter_context(service.metrics.request(call.adapter, started)) for _ in streams]
            outputs = await stack.enter_async_context(aclosing(_interleave(streams)))
            async for index, output in outputs:
                meters[index].saw(output)
                yield index, output
    except ENGINE_ERRORS as error:
        raise from_engine(error, call.prompt_field) from error


async def _interleave(streams: Sequence[AsyncIterator[RequestOutput]]) -> Outputs:
    if len(streams) == 1:
        async for output in streams[0]:
            yield 0, output
        return
    waiting = {asyncio.ensure_future(anext(stream)): index for index, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
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


async def collect(outputs: Outputs, num_prompts: int) -> list[RequestOutput]:
    """Each prompt's outputs joined into one, without their token ids. Closes `outputs`."""
    texts: list[list[str]] = [[] for _ in range(num_prompts)]
    last: dict[int, RequestOutput] = {}
    async with aclosing(outputs):
        async for index, output in outputs:
            texts[index].append(output.text)
            last[index] = output
    return [replace(last[index], text="".join(texts[index]), token_ids=()) for index in range(num_prompts)]
