"""POST /v1/rerank and /v1/score: how well texts go together, by a cross-encoder or by the cosine of their vectors."""

import time
import uuid
from collections.abc import Sequence
from typing import Literal

from litestar import post
from litestar.di import NamedDependency
from litestar.response.base import ASGIResponse
from msgspec import json

from descant_engine.request import Owner
from descant_server.bodies import HttpRequest, charge_of, json_answer, read_json, unless_client_leaves
from descant_server.identity import identified
from descant_server.pooling import PoolingCall, keep_first_of, pool, scores_of, scoring_inputs
from descant_server.service import Service
from descant_wire.embeddings import PoolingFields, PoolingUsage
from descant_wire.rerank import (
    Document,
    RerankRequest,
    RerankResponse,
    RerankResult,
    Score,
    ScoreRequest,
    ScoreResponse,
)


@post(["/v1/rerank", "/v2/rerank", "/rerank"], status_code=200)
async def rerank(request: HttpRequest, service: NamedDependency[Service]) -> ASGIResponse:
    asked = await read_json(request, RerankRequest)
    texts = asked.texts()
    pairs = [(asked.query, text) for text in texts]
    call_id = f"rerank-{uuid.uuid4().hex}"
    scores, usage = await _score(request, service, asked, pairs, "documents", call_id)
    best = sorted(range(len(texts)), key=lambda index: scores[index], reverse=True)[: asked.top_n or None]
    shows_documents = asked.return_documents is not False
    results = [
        RerankResult(
            index=index,
            relevance_score=scores[index],
            document=Document(text=texts[index]) if shows_documents else None,
        )
        for index in best
    ]
    return json_answer(json.encode(RerankResponse(id=call_id, model=asked.model, usage=usage, results=results)))


@post(["/v1/score", "/score"], status_code=200)
async def score(request: HttpRequest, service: NamedDependency[Service]) -> ASGIResponse:
    asked = await read_json(request, ScoreRequest)
    call_id = f"score-{uuid.uuid4().hex}"
    scores, usage = await _score(request, service, asked, asked.pairs(), "text_2", call_id)
    answer = ScoreResponse(
        id=call_id,
        created=int(time.time()),
        model=asked.model,
        data=[Score(index=index, score=each) for index, each in enumerate(scores)],
        usage=usage,
    )
    return json_answer(json.encode(answer))


async def _score(
    request: HttpRequest,
    service: Service,
    asked: PoolingFields,
    pairs: Sequence[tuple[str, str]],
    field: Literal["documents", "text_2"],
    call_id: str,
) -> tuple[list[float], PoolingUsage]:
    inputs = scoring_inputs(pairs, service)
    call = PoolingCall(
        inputs=inputs,
        input_field=field,
        keep_first=keep_first_of(asked, service.engine.config.max_model_len),
        adapter=service.adapter_for(asked.model),
        owner=Owner(priority=asked.priority or 0),
    )
    call = identified(call, request, service.config)
    pooled = await unless_client_leaves(request, pool(service, call, call_id, charge_of(request)))
    return scores_of(pairs, inputs, pooled), PoolingUsage.of(pooled.num_tokens)
