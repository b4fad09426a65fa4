"""POST /v1/completions."""

from dataclasses import replace

from litestar import post
from litestar.di import NamedDependency
from litestar.response.base import ASGIResponse

from descant_server.answer import answer_stream, answer_whole
from descant_server.bodies import HttpRequest, read_json
from descant_server.completion_answer import completion_format
from descant_server.identity import identified
from descant_server.service import Service
from descant_server.text import echoed_prompts, prompts_of
from descant_server.translate import completion_call
from descant_wire.completions import CompletionRequest


@post("/v1/completions", status_code=200)
async def create_completion(request: HttpRequest, service: NamedDependency[Service]) -> ASGIResponse:
    asked = await read_json(request, CompletionRequest)
    adapter, engine = service.adapter_for(asked.model), service.engine
    call = completion_call(asked, prompts_of(asked), engine.config.max_model_len, adapter)
    call = identified(call, request, service.config)
    echo = await echoed_prompts(call.prompts, call.params, engine) if asked.echo else ()
    if echo:
        call = replace(call, prompts=tuple(prompt.token_ids for prompt in echo))
    answer_format = completion_format(asked, call.params, engine.tokenizer, echo)
    if asked.stream:
        return await answer_stream(request, service, call, answer_format, with_usage=asked.wants_usage_chunk)
    return await answer_whole(request, service, call, answer_format)
