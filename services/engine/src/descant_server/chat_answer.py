"""Outputs as chat completions."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from descant_engine.outputs import RequestOutput
from descant_engine.sampling_params import SamplingParams
from descant_engine.text.tool_calls.events import Content
from descant_server.answer_format import finish_reason_of
from descant_server.chat_reading import ChatReader, MoreArguments, NewCall, Piece, Reading, Reasoning
from descant_server.token_scores import TokenNames, chat_logprobs, prompt_logprobs
from descant_wire.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ResponseMessage,
)
from descant_wire.logprobs import ChatLogprobs, PromptLogprobs
from descant_wire.sampling import FinishReason
from descant_wire.sse import encode_event
from descant_wire.tools import AnsweredToolCall, FunctionCall, FunctionCallDelta, ToolCallDelta
from descant_wire.usage import CompletionTokensDetails, Usage

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """One answer's. It knows how far each choice has been read."""

    id: str
    created: int
    model: str
    params: SamplingParams
    names: TokenNames
    readers: Sequence[ChatReader]
    """One for each choice."""

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> bytes:
        choices = [self._choice(index, output) for index, output in enumerate(outputs)]
        return _encode(
            ChatCompletion(
                id=self.id,
                created=self.created,
                model=self.model,
                choices=choices,
                usage=self._with_reasoning(usage),
                prompt_logprobs=self._prompt_logprobs(outputs[0]),
            )
        )

    def opening(self, first: RequestOutput) -> bytes:
        delta = ChatDelta(role="assistant", content="")
        first_choice, *others = (ChatChunkChoice(index=index, delta=delta) for index in range(self.params.n))
        scores = self._prompt_logprobs(first)
        opening = self._chunk([first_choice], None, UNSET if scores is None else scores)
        return opening + b"".join(self._event(choice) for choice in others)

    def events(self, index: int, output: RequestOutput) -> bytes:
        deltas = [_delta(piece) for piece in self.readers[index].read(output)]
        if output.logprobs and not deltas:
            deltas = [ChatDelta(content="")]
        # The first of an output's events has the log-probabilities of all its tokens.
        scores = [self._logprobs(output), *[None] * len(deltas)]
        events = b"".join(
            self._event(ChatChunkChoice(index=index, delta=delta, logprobs=logprobs))
            for delta, logprobs in zip(deltas, scores, strict=False)
        )
        if output.finish_reason is None:
            return events
        last = ChatChunkChoice(
            index=index,
            delta=ChatDelta(),
            finish_reason=self._finish_reason(index, output),
            stop_reason=output.stop_reason,
        )
        return events + self._event(last)

    def usage_event(self, usage: Usage) -> bytes:
        return self._chunk([], self._with_reasoning(usage))

    def _choice(self, index: int, output: RequestOutput) -> ChatChoice:
        message = _message(self.readers[index].read(output))
        return ChatChoice(
            index=index,
            message=message,
            finish_reason=self._finish_reason(index, output),
            stop_reason=output.stop_reason,
            logprobs=self._logprobs(output),
        )

    def _finish_reason(self, index: int, output: RequestOutput) -> FinishReason:
        reason = finish_reason_of(output)
        return "tool_calls" if reason == "stop" and self.readers[index].has_called else reason

    def _with_reasoning(self, usage: Usage) -> Usage:
        num_tokens = sum(reader.num_reasoning_tokens for reader in self.readers)
        return replace(usage, completion_tokens_details=CompletionTokensDetails(reasoning_tokens=num_tokens))

    def _logprobs(self, output: RequestOutput) -> ChatLogprobs | None:
        return None if self.params.logprobs is None else chat_logprobs(output.logprobs, self.names)

    def _prompt_logprobs(self, first: RequestOutput) -> PromptLogprobs | None:
        """They come with the first sample."""
        return None if self.params.prompt_logprobs is None else prompt_logprobs(first.prompt_logprobs, self.names)

    def _event(self, choice: ChatChunkChoice) -> bytes:
        return self._chunk([choice], None)

    def _chunk(
        self, choices: list[ChatChunkChoice], usage: Usage | None, scores: PromptLogprobs | UnsetType = UNSET
    ) -> bytes:
        chunk = ChatCompletionChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=usage,
            prompt_logprobs=scores,
        )
        return encode_event(_encode(chunk))


def _message(pieces: Sequence[Piece]) -> ResponseMessage:
    """A whole message of what a reader found in a complete output."""
    content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    calls = [
        AnsweredToolCall(id=piece.id, function=FunctionCall(name=piece.name, arguments=_arguments(piece.place, pieces)))
        for piece in pieces
        if isinstance(piece, NewCall)
    ]
    return ResponseMessage(
        content=None if calls and not content.strip() else content,
        reasoning_content=reasoning or None,
        tool_calls=calls or None,
    )


def _arguments(place: int, pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, MoreArguments) and piece.place == place)


def _delta(piece: Piece) -> ChatDelta:
    match piece:
        case Reasoning(text):
            return ChatDelta(reasoning_content=text)
        case Content(text):
            return ChatDelta(content=text)
        case NewCall(index, call_id, name):
            function = FunctionCallDelta(name=name, arguments="")
            return ChatDelta(tool_calls=[ToolCallDelta(index=index, id=call_id, type="function", function=function)])
        case MoreArguments(index, text):
            return ChatDelta(tool_calls=[ToolCallDelta(index=index, function=FunctionCallDelta(arguments=text))])


def chat_format(model: str, params: SamplingParams, names: TokenNames, reading: Reading) -> ChatFormat:
    readers = [ChatReader(reading, names.tokenizer) for _ in range(params.n)]
    return ChatFormat(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model, params, names, readers)
