"""POST /tokenize and /detokenize: the model's own tokenizer, in vLLM's shapes."""

from litestar import post
from litestar.di import NamedDependency
from litestar.response.base import ASGIResponse
from msgspec import json

from descant_server.bodies import HttpRequest, json_answer, read_json
from descant_server.service import Service
from descant_server.text import detokenize, tokenize
from descant_wire.tokenize import DetokenizeRequest, TokenizeRequest


@post("/tokenize", status_code=200)
async def tokenize_text(request: HttpRequest, service: NamedDependency[Service]) -> ASGIResponse:
    asked = await read_json(request, TokenizeRequest)
    if asked.model is not None:
        service.adapter_for(asked.model)
    return json_answer(json.encode(await tokenize(asked, service.engine)))


@post("/detokenize", status_code=200)
async def detokenize_tokens(request: HttpRequest, service: NamedDependency[Service]) -> ASGIResponse:
    asked = await read_json(request, DetokenizeRequest)
    if asked.model is not None:
        service.adapter_for(asked.model)
    return json_answer(json.encode(await detokenize(asked, service.engine)))
