"""POST /v1/embeddings."""

import base64
import time
import uuid

from litestar import post
from litestar.di import NamedDependency
from litestar.response.base import ASGIResponse
from msgspec import json

from descant_engine.frontend import Text
from descant_engine.pooling_inputs import PoolingInput
from descant_engine.request import Owner
from descant_server.bodies import HttpRequest, charge_of, json_answer, read_json, unless_client_leaves
from descant_server.identity import identified
from descant_server.pooling import FloatArray, PoolingCall, keep_first_of, pool
from descant_server.service import Service
from descant_wire.embeddings import Embedding, EmbeddingRequest, EmbeddingResponse, PoolingUsage


@post("/v1/embeddings", status_code=200)
async def create_embeddings(request: HttpRequest, service: NamedDependency[Service]) -> ASGIResponse:
    asked = await read_json(request, EmbeddingRequest)
    call = PoolingCall(
        inputs=_inputs(asked),
        input_field="input",
        dimensions=asked.dimensions,
        keep_first=keep_first_of(asked, service.engine.config.max_model_len),
        adapter=service.adapter_for(asked.model),
        owner=Owner(priority=asked.priority or 0),
    )
    call = identified(call, request, service.config)
    call_id = f"embd-{uuid.uuid4().hex}"
    pooled = await unless_client_leaves(request, pool(service, call, call_id, charge_of(request)))
    answer = EmbeddingResponse(
        id=call_id,
        created=int(time.time()),
        model=asked.model,
        data=[
            Embedding(index=index, embedding=_written(vector, as_base64=asked.encoding_format == "base64"))
            for index, vector in enumerate(pooled.vectors)
        ],
        usage=PoolingUsage.of(pooled.num_tokens),
    )
    return json_answer(json.encode(answer))


def _inputs(asked: EmbeddingRequest) -> list[PoolingInput]:
    add_special_tokens = asked.add_special_tokens is not False
    return [
        Text(each, add_special_tokens=add_special_tokens) if isinstance(each, str) else each for each in asked.inputs()
    ]


def _written(vector: FloatArray, *, as_base64: bool) -> list[float] | str:
    if as_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
