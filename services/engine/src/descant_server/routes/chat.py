"""POST /v1/chat/completions."""

from litestar import post
from litestar.di import NamedDependency
from litestar.response.base import ASGIResponse

from descant_server.answer import answer_stream, answer_whole
from descant_server.bodies import HttpRequest, read_json, tenant_of
from descant_server.service import Service
from descant_server.translate import chat_call, chat_format
from descant_wire.chat import ChatCompletionRequest


@post("/v1/chat/completions", status_code=200)
async def create_chat_completion(request: HttpRequest, service: NamedDependency[Service]) -> ASGIResponse:
    asked = await read_json(request, ChatCompletionRequest)
    call = chat_call(asked, service.adapter_for(asked.model), tenant_of(request))
    if asked.stream:
        return await answer_stream(request, service, call, chat_format(asked.model), with_usage=asked.wants_usage_chunk)
    return await answer_whole(request, service, call, chat_format(asked.model))
