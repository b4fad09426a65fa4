"""POST /v1/completions."""

from litestar import post
from litestar.di import NamedDependency
from litestar.response.base import ASGIResponse

from descant_server.answer import answer_stream, answer_whole
from descant_server.bodies import HttpRequest, read_json, tenant_of
from descant_server.service import Service
from descant_server.text import prompts_of
from descant_server.translate import completion_call, completion_format
from descant_wire.completions import CompletionRequest


@post("/v1/completions", status_code=200)
async def create_completion(request: HttpRequest, service: NamedDependency[Service]) -> ASGIResponse:
    asked = await read_json(request, CompletionRequest)
    adapter = service.adapter_for(asked.model)
    call = completion_call(asked, await prompts_of(asked, service.engine), adapter, tenant_of(request))
    if asked.stream:
        return await answer_stream(
            request, service, call, completion_format(asked.model), with_usage=asked.wants_usage_chunk
        )
    return await answer_whole(request, service, call, completion_format(asked.model))
