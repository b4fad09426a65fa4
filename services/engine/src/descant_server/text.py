"""The tokenizer's uses beside generation. What may be long is encoded in a thread: the event loop never waits."""

import asyncio
from collections.abc import Sequence

from descant_engine.async_engine import AsyncEngine
from descant_engine.frontend import Prompt, PromptTooLong, Text
from descant_engine.sampling_params import SamplingParams
from descant_engine.text.chat_template import render_chat
from descant_engine.text.tokenizer import TextTooLong
from descant_server.chat_prompt import chat_prompt
from descant_server.completion_answer import EchoedPrompt
from descant_server.errors import ENGINE_ERRORS, from_engine
from descant_wire.chat import ChatMessage
from descant_wire.completions import CompletionRequest
from descant_wire.errors import invalid_request
from descant_wire.tokenize import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse


def prompts_of(request: CompletionRequest) -> list[Prompt]:
    """Raises ApiError 400: the prompt has the wrong form."""
    add_special_tokens = request.add_special_tokens is not False
    return [
        Text(prompt, add_special_tokens=add_special_tokens) if isinstance(prompt, str) else prompt
        for prompt in request.prompts()
    ]


async def echoed_prompts(prompts: Sequence[Prompt], params: SamplingParams, engine: AsyncEngine) -> list[EchoedPrompt]:
    """The prompts as they go before their outputs. Raises ApiError 400: too long, or not in the vocabulary."""
    try:
        return [await _echoed(prompt, params, engine) for prompt in prompts]
    except ENGINE_ERRORS as error:
        raise from_engine(error, "prompt") from None


async def _echoed(prompt: Prompt, params: SamplingParams, engine: AsyncEngine) -> EchoedPrompt:
    token_ids = await engine.encode(prompt, params.truncate_prompt_tokens)
    if isinstance(prompt, Text) and params.truncate_prompt_tokens is None:
        return EchoedPrompt(prompt.text, token_ids)
    text = engine.tokenizer.decode(token_ids, skip_special_tokens=params.skip_special_tokens)
    return EchoedPrompt(text, token_ids)


async def tokenize(request: TokenizeRequest, engine: AsyncEngine) -> TokenizeResponse:
    """Raises ApiError 400: not exactly one of prompt and messages, or too long for the context."""
    if (request.prompt is None) == (request.messages is None):
        raise invalid_request("Give either `prompt` or `messages`.", param="prompt")
    text, field, add_special_tokens = request.prompt, "prompt", True
    if request.messages is not None:
        text, field, add_special_tokens = await _render(request, request.messages, engine), "messages", False
    assert text is not None
    if request.add_special_tokens is not None:
        add_special_tokens = request.add_special_tokens
    tokens = await _encode(engine, text, add_special_tokens=add_special_tokens, field=field)
    return TokenizeResponse(
        count=len(tokens),
        max_model_len=engine.config.max_model_len,
        tokens=tokens,
        token_strs=[engine.tokenizer.token_text(token) for token in tokens] if request.return_token_strs else None,
    )


async def detokenize(request: DetokenizeRequest, engine: AsyncEngine) -> DetokenizeResponse:
    return DetokenizeResponse(prompt=await asyncio.to_thread(engine.tokenizer.decode, request.tokens))


async def _render(request: TokenizeRequest, messages: Sequence[ChatMessage], engine: AsyncEngine) -> str:
    chat = chat_prompt(messages, request, request.tools or [])
    try:
        return await asyncio.to_thread(
            render_chat,
            engine.tokenizer,
            chat.messages,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            template_kwargs=chat.template_kwargs,
            tools=chat.tools,
        )
    except ENGINE_ERRORS as error:
        raise from_engine(error, "messages") from None


async def _encode(engine: AsyncEngine, text: str, *, add_special_tokens: bool, field: str) -> list[int]:
    max_model_len = engine.config.max_model_len
    try:
        return await asyncio.to_thread(
            engine.tokenizer.encode, text, add_special_tokens=add_special_tokens, max_tokens=max_model_len
        )
    except TextTooLong as error:
        raise from_engine(PromptTooLong(error.min_tokens, max_model_len, at_least=True), field) from None
    except ENGINE_ERRORS as error:
        raise from_engine(error, field) from None
