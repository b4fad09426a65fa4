"""Outputs as chat completions."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from descant_engine.outputs import RequestOutput
from descant_engine.sampling_params import SamplingParams
from descant_server.answer_format import finish_reason_of
from descant_server.token_scores import TokenNames, chat_logprobs, prompt_logprobs
from descant_wire.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ResponseMessage,
)
from descant_wire.logprobs import ChatLogprobs
from descant_wire.sse import encode_event
from descant_wire.usage import Usage

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ChatFormat:
    id: str
    created: int
    model: str
    params: SamplingParams
    names: TokenNames

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> bytes:
        choices = [
            ChatChoice(
                index=index,
                message=ResponseMessage(content=output.text),
                finish_reason=finish_reason_of(output),
                stop_reason=output.stop_reason,
                logprobs=self._logprobs(output),
            )
            for index, output in enumerate(outputs)
        ]
        asks_for_prompt = self.params.prompt_logprobs is not None
        return _encode(
            ChatCompletion(
                id=self.id,
                created=self.created,
                model=self.model,
                choices=choices,
                usage=usage,
                prompt_logprobs=prompt_logprobs(outputs[0].prompt_logprobs, self.names) if asks_for_prompt else None,
            )
        )

    def opening(self) -> bytes:
        delta = ChatDelta(role="assistant", content="")
        return b"".join(self._event(ChatChunkChoice(index=index, delta=delta)) for index in range(self.params.n))

    def events(self, index: int, output: RequestOutput) -> bytes:
        events = b""
        if output.text or output.logprobs:
            delta = ChatDelta(content=output.text)
            events = self._event(ChatChunkChoice(index=index, delta=delta, logprobs=self._logprobs(output)))
        if output.finish_reason is None:
            return events
        last = ChatChunkChoice(
            index=index,
            delta=ChatDelta(),
            finish_reason=finish_reason_of(output),
            stop_reason=output.stop_reason,
        )
        return events + self._event(last)

    def usage_event(self, usage: Usage) -> bytes:
        return self._chunk([], usage)

    def _logprobs(self, output: RequestOutput) -> ChatLogprobs | None:
        return None if self.params.logprobs is None else chat_logprobs(output.logprobs, self.names)

    def _event(self, choice: ChatChunkChoice) -> bytes:
        return self._chunk([choice], None)

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None) -> bytes:
        chunk = ChatCompletionChunk(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)
        return encode_event(_encode(chunk))


def chat_format(model: str, params: SamplingParams, names: TokenNames) -> ChatFormat:
    return ChatFormat(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model, params, names)
