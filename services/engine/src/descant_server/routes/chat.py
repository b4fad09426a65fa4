"""POST /v1/chat/completions."""

from litestar import post
from litestar.di import NamedDependency
from litestar.response.base import ASGIResponse

from descant_server.answer import answer_stream, answer_whole
from descant_server.bodies import HttpRequest, read_json
from descant_server.chat_answer import chat_format
from descant_server.identity import identified
from descant_server.service import Service
from descant_server.token_scores import TokenNames
from descant_server.translate import chat_call
from descant_wire.chat import ChatCompletionRequest


@post("/v1/chat/completions", status_code=200)
async def create_chat_completion(request: HttpRequest, service: NamedDependency[Service]) -> ASGIResponse:
    asked = await read_json(request, ChatCompletionRequest)
    adapter, engine = service.adapter_for(asked.model), service.engine
    call = chat_call(asked, service.chat_model, engine.config.max_model_len, adapter)
    call = identified(call, request, service.config)
    names = TokenNames(engine.tokenizer, as_ids=bool(asked.return_tokens_as_token_ids))
    answer_format = chat_format(asked.model, call.params, names, call.reading)
    if asked.stream:
        return await answer_stream(request, service, call, answer_format, with_usage=asked.wants_usage_chunk)
    return await answer_whole(request, service, call, answer_format)
