"""Between the wire and the engine: a request becomes prompts and SamplingParams, outputs become answers and chunks.

The one place that knows both. A field that is not read here is refused or declared harmless in `descant_wire`.
"""

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import msgspec

from descant_engine import request as engine
from descant_engine.frontend import Chat, Prompt
from descant_engine.outputs import RequestOutput
from descant_engine.outputs import Usage as EngineUsage
from descant_engine.sampling_params import SamplingParams
from descant_engine.text import chat_template
from descant_server.errors import field_of
from descant_wire.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatMessage,
    ResponseMessage,
)
from descant_wire.completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionRequest,
)
from descant_wire.errors import ApiError, invalid_request
from descant_wire.sampling import FinishReason, SamplingFields
from descant_wire.sse import encode_event
from descant_wire.usage import Usage

ValueT = TypeVar("ValueT")

_DEFAULTS = SamplingParams()
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCall:
    """What one API call asks of the engine: a request for each prompt."""

    prompts: Sequence[Prompt]
    prompt_field: Literal["messages", "prompt"]
    """The wire's name for the prompt, for error messages."""
    params: SamplingParams
    adapter: str | None
    tenant: str
    tenant_salt: str
    priority: int


def chat_call(request: ChatCompletionRequest, adapter: str | None, tenant: str = "") -> EngineCall:
    """Raises ApiError 400 for a sampling value outside its range."""
    return EngineCall(
        prompts=(Chat(chat_messages(request.messages)),),
        prompt_field="messages",
        params=sampling_params(request, request.completion_limit),
        adapter=adapter,
        tenant=tenant,
        tenant_salt=_salt(tenant, request.cache_salt),
        priority=request.priority or 0,
    )


def completion_call(
    request: CompletionRequest, prompts: Sequence[Prompt], adapter: str | None, tenant: str = ""
) -> EngineCall:
    """Raises ApiError 400 for a sampling value outside its range."""
    return EngineCall(
        prompts=prompts,
        prompt_field="prompt",
        params=sampling_params(request, request.completion_limit),
        adapter=adapter,
        tenant=tenant,
        tenant_salt=_salt(tenant, request.cache_salt),
        priority=request.priority or 0,
    )


def _salt(tenant: str, cache_salt: str | None) -> str:
    """A client's salt divides its tenant's blocks further, and can never mean another tenant's."""
    # No header can hold the separator.
    return f"{tenant}\0{cache_salt or ''}" if tenant else cache_salt or ""


def chat_messages(messages: Sequence[ChatMessage]) -> list[chat_template.ChatMessage]:
    return [_chat_message(message) for message in messages]


def _chat_message(message: ChatMessage) -> chat_template.ChatMessage:
    # OpenAI renamed "system" for its newer models; no open model's template knows the new name.
    role = "system" if message.role == "developer" else message.role
    content: str | list[chat_template.TextPart]
    if isinstance(message.content, list):
        content = [{"type": "text", "text": part.text} for part in message.content]
    else:
        content = message.content or ""
    if message.name is None:
        return {"role": role, "content": content}
    return {"role": role, "content": content, "name": message.name}


def sampling_params(request: SamplingFields, completion_limit: int | None) -> SamplingParams:
    """Null means the default, as it does for OpenAI. SamplingParams knows the ranges.

    Raises:
        ApiError: 400, a value outside its range.
    """
    try:
        return SamplingParams(
            temperature=_given(request.temperature, _DEFAULTS.temperature),
            top_p=_given(request.top_p, _DEFAULTS.top_p),
            top_k=0 if request.top_k == -1 else _given(request.top_k, _DEFAULTS.top_k),
            min_p=_given(request.min_p, _DEFAULTS.min_p),
            seed=request.seed,
            presence_penalty=_given(request.presence_penalty, _DEFAULTS.presence_penalty),
            frequency_penalty=_given(request.frequency_penalty, _DEFAULTS.frequency_penalty),
            repetition_penalty=_given(request.repetition_penalty, _DEFAULTS.repetition_penalty),
            max_tokens=completion_limit,
            min_tokens=_given(request.min_tokens, _DEFAULTS.min_tokens),
            stop=request.stop_strings,
            stop_token_ids=tuple(request.stop_token_ids or ()),
            ignore_eos=_given(request.ignore_eos, _DEFAULTS.ignore_eos),
        )
    except ValueError as error:
        raise _out_of_range(str(error), request) from None


def _given(value: ValueT | None, default: ValueT) -> ValueT:
    return default if value is None else value


def _out_of_range(message: str, request: SamplingFields) -> ApiError:
    field = field_of(message)
    if field == "max_tokens" and _gives_completion_tokens(request):
        message, field = f"max_completion_tokens{message.removeprefix(field)}", "max_completion_tokens"
    return invalid_request(message, param=field, code="invalid_value")


def _gives_completion_tokens(request: SamplingFields) -> bool:
    return isinstance(request, ChatCompletionRequest) and request.max_completion_tokens is not None


class AnswerFormat(Protocol):
    """How outputs become an answer of one endpoint. `index` is the prompt's place among the request's prompts."""

    @property
    def id(self) -> str:
        """The answer's id."""

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> bytes:
        """The answer in one piece, from each prompt's complete output."""

    def opening(self) -> bytes:
        """The events before the first output."""

    def events(self, index: int, output: RequestOutput) -> bytes:
        """The events of one output: none while all of its text is held back."""

    def usage_event(self, usage: Usage) -> bytes:
        """The event after the last output, for those who asked for it."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    id: str
    created: int
    model: str

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> bytes:
        choices = [
            ChatChoice(
                index=index,
                message=ResponseMessage(content=output.text),
                finish_reason=_finish_reason(output),
                stop_reason=output.stop_reason,
            )
            for index, output in enumerate(outputs)
        ]
        return _encode(ChatCompletion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage))

    def opening(self) -> bytes:
        return self._event(ChatChunkChoice(delta=ChatDelta(role="assistant", content="")))

    def events(self, index: int, output: RequestOutput) -> bytes:
        events = self._event(ChatChunkChoice(delta=ChatDelta(content=output.text))) if output.text else b""
        if output.finish_reason is None:
            return events
        return events + self._event(
            ChatChunkChoice(delta=ChatDelta(), finish_reason=_finish_reason(output), stop_reason=output.stop_reason)
        )

    def usage_event(self, usage: Usage) -> bytes:
        return self._chunk([], usage)

    def _event(self, choice: ChatChunkChoice) -> bytes:
        return self._chunk([choice], None)

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None) -> bytes:
        chunk = ChatCompletionChunk(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)
        return encode_event(_encode(chunk))


@dataclass(frozen=True, slots=True)
class CompletionFormat:
    id: str
    created: int
    model: str

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> bytes:
        choices = [
            CompletionChoice(
                index=index,
                text=output.text,
                finish_reason=_finish_reason(output),
                stop_reason=output.stop_reason,
            )
            for index, output in enumerate(outputs)
        ]
        return _encode(Completion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage))

    def opening(self) -> bytes:
        return b""

    def events(self, index: int, output: RequestOutput) -> bytes:
        if not output.text and output.finish_reason is None:
            return b""
        finish_reason = None if output.finish_reason is None else _finish_reason(output)
        choice = CompletionChunkChoice(
            index=index, text=output.text, finish_reason=finish_reason, stop_reason=output.stop_reason
        )
        return self._chunk([choice], None)

    def usage_event(self, usage: Usage) -> bytes:
        return self._chunk([], usage)

    def _chunk(self, choices: list[CompletionChunkChoice], usage: Usage | None) -> bytes:
        chunk = CompletionChunk(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)
        return encode_event(_encode(chunk))


def chat_format(model: str) -> ChatFormat:
    return ChatFormat(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model)


def completion_format(model: str) -> CompletionFormat:
    return CompletionFormat(f"cmpl-{uuid.uuid4().hex}", int(time.time()), model)


def _finish_reason(output: RequestOutput) -> FinishReason:
    match output.finish_reason:
        case engine.FinishReason.STOP:
            return "stop"
        case engine.FinishReason.LENGTH:
            return "length"
        case _:
            # ERROR never gets here: its stream raises.
            return "abort"


def total_usage(usages: Iterable[EngineUsage]) -> Usage:
    """Of all prompts together, from the totals of each."""
    each = list(usages)
    return Usage.of(
        sum(usage.prompt_tokens for usage in each),
        sum(usage.completion_tokens for usage in each),
        sum(usage.cached_tokens for usage in each),
    )
