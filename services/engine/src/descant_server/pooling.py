"""One API call for vectors or scores under way: its texts in the engine, a bounded number of them at a time."""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from descant_engine.async_engine import AsyncEngine
from descant_engine.outputs import RequestOutput
from descant_engine.pooling import Task
from descant_engine.pooling_inputs import Pair, PoolingInput
from descant_engine.request import Owner
from descant_engine.serving.request_stream import RequestStream
from descant_server.errors import ENGINE_ERRORS, from_engine
from descant_server.metrics import RequestMeter
from descant_server.service import Service
from descant_server.traces import traced
from descant_wire.embeddings import PoolingFields
from descant_wire.errors import invalid_request

MAX_UNDER_WAY = 256
"""Texts of one call in the engine: enough to fill its steps, and few enough to leave room in its queue."""

_OPERATIONS: Final = {"input": "embeddings", "documents": "rerank", "text_2": "score"}

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingCall:
    inputs: Sequence[PoolingInput]
    input_field: Literal["input", "documents", "text_2"]
    """The wire's name for the texts, for error messages."""
    dimensions: int | None = None
    keep_first: int | None
    adapter: str | None
    owner: Owner
    traceparent: str = ""
    """Whose span this call belongs to, as `EngineCall` has it."""

    @property
    def operation(self) -> str:
        """As traces name it."""
        return _OPERATIONS[self.input_field]


class Pooled(NamedTuple):
    vectors: list[FloatArray]
    """In the order of the inputs; of a pair its score."""
    num_tokens: int


def keep_first_of(asked: PoolingFields, max_model_len: int) -> int | None:
    """How many tokens of each text are read; None is all. Raises ApiError 400."""
    wanted = asked.truncate_prompt_tokens
    if wanted is None or wanted >= 1:
        return wanted
    if wanted == -1:
        return max_model_len
    raise invalid_request(
        f"`truncate_prompt_tokens` must be -1 or at least 1; got {wanted}.", param="truncate_prompt_tokens"
    )


async def pool(service: Service, call: PoolingCall, call_id: str, charge: str) -> Pooled:
    """The engine's vectors for the call's texts. Cancelling it ends what is unfinished at once.

    `charge`: under which its usage is kept, see `usage_book`.

    Raises:
        ApiError: what the engine refused, or why it failed.
    """
    started = time.monotonic()
    engine = service.engine
    streams: list[RequestStream] = []
    vectors: list[FloatArray] = []
    under_way: deque[tuple[RequestStream, RequestMeter]] = deque()
    try:
        async with AsyncExitStack() as stack:
            stack.enter_context(service.usage_book.entry(charge, streams))
            if service.tracer is not None:
                stack.enter_context(traced(service.tracer, call, service.config.base_names[0], streams))
            for index, given in enumerate(call.inputs):
                if len(under_way) == MAX_UNDER_WAY:
                    vectors.append(await _vector(*under_way.popleft()))
                stream = await _submit(engine, call, given, f"{call_id}-{index}")
                streams.append(await stack.enter_async_context(stream))
                meter = stack.enter_context(service.metrics.request(call.adapter, started))
                under_way.append((stream, meter))
            vectors += [await _vector(*each) for each in under_way]
    except ENGINE_ERRORS as error:
        raise from_engine(error, call.input_field, has_begun=bool(streams)) from error
    return Pooled(vectors, sum(stream.usage.prompt_tokens for stream in streams))


async def _submit(engine: AsyncEngine, call: PoolingCall, given: PoolingInput, request_id: str) -> RequestStream:
    return await engine.submit_pooling(
        given,
        dimensions=call.dimensions,
        keep_first=call.keep_first,
        adapter=call.adapter,
        request_id=request_id,
        owner=call.owner,
    )


async def _vector(stream: RequestStream, meter: RequestMeter) -> FloatArray:
    output: RequestOutput = await anext(stream)
    meter.saw(output)
    assert output.pooled is not None
    return np.frombuffer(output.pooled, dtype=np.float32)


def scoring_inputs(pairs: Sequence[tuple[str, str]], service: Service) -> list[PoolingInput]:
    """What `scores_of` needs pooled: the pairs for a cross-encoder, else every text that occurs in them, once."""
    if Task.SCORE in service.engine.config.tasks:
        return [Pair(*pair) for pair in pairs]
    return list(dict.fromkeys(text for pair in pairs for text in pair))


def scores_of(pairs: Sequence[tuple[str, str]], inputs: Sequence[PoolingInput], pooled: Pooled) -> list[float]:
    """A cross-encoder's numbers, or the cosine of each pair's vectors."""
    if isinstance(inputs[0], Pair):
        return [float(vector[0]) for vector in pooled.vectors]
    units = {text: _unit(vector) for text, vector in zip(inputs, pooled.vectors, strict=True)}
    return [float(units[first] @ units[second]) for first, second in pairs]


def _unit(vector: FloatArray) -> FloatArray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
