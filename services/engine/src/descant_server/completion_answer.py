"""Outputs as text completions, with their prompts before them where that is asked for."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET

from descant_engine.outputs import RequestOutput
from descant_engine.request import TokenLogprobs
from descant_engine.sampling_params import SamplingParams
from descant_engine.text.tokenizer import Tokenizer
from descant_server.answer_format import finish_reason_of
from descant_server.token_scores import TokenNames, completion_logprobs, echoed_logprobs, joined, prompt_logprobs
from descant_wire.completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionRequest,
)
from descant_wire.logprobs import CompletionLogprobs, PromptLogprobs
from descant_wire.sse import encode_event
from descant_wire.usage import Usage

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """A prompt that goes before its outputs."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CompletionFormat:
    """Choices are in the order of the prompts, each prompt's `params.n` together."""

    id: str
    created: int
    model: str
    params: SamplingParams
    """`prompt_logprobs` are asked for by the client or, with `echo`, by ourselves."""
    names: TokenNames
    echo: Sequence[EchoedPrompt] = ()
    """One for each prompt, or none."""
    shows_prompt_logprobs: bool = False
    """In vLLM's field."""
    shows_output: bool = True
    """False: nothing but the prompt was asked for."""
    _prompt_scores: dict[int, Sequence[TokenLogprobs]] = field(default_factory=dict)
    """By the prompt's number: they come with its first sample, and are shown with each."""
    _begun: set[int] = field(default_factory=set)
    """Choices that something has been sent of."""

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> bytes:
        for index, output in enumerate(outputs):
            self._take_prompt_scores(index, output)
        choices = [
            CompletionChoice(
                index=index,
                text=self._text(index, output),
                finish_reason=finish_reason_of(output),
                stop_reason=output.stop_reason,
                logprobs=self._logprobs(index, output),
                prompt_logprobs=self._prompt_logprobs(index),
            )
            for index, output in enumerate(outputs)
        ]
        return _encode(
            Completion(id=self.id, created=self.created, model=self.model, choices=choices, usage=self._counted(usage))
        )

    def opening(self, first: RequestOutput) -> bytes:
        return b""

    def events(self, index: int, output: RequestOutput) -> bytes:
        self._take_prompt_scores(index, output)
        text, logprobs = self._text(index, output), self._logprobs(index, output)
        scores = None if index in self._begun else self._prompt_logprobs(index)
        self._begun.add(index)
        has_tokens = logprobs is not None and logprobs.tokens
        if not (text or has_tokens or scores or output.finish_reason):
            return b""
        choice = CompletionChunkChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=None if output.finish_reason is None else finish_reason_of(output),
            stop_reason=output.stop_reason,
            prompt_logprobs=UNSET if scores is None else scores,
        )
        return self._chunk([choice], None)

    def usage_event(self, usage: Usage) -> bytes:
        return self._chunk([], self._counted(usage))

    def _text(self, index: int, output: RequestOutput) -> str:
        text = output.text if self.shows_output else ""
        prompt = self._echoed(index)
        return text if prompt is None else prompt.text + text

    def _logprobs(self, index: int, output: RequestOutput) -> CompletionLogprobs | None:
        if self.params.logprobs is None:
            return None
        first_offset = len(self.echo[index // self.params.n].text) if self.echo else 0
        own = completion_logprobs(output.logprobs if self.shows_output else (), self.names, first_offset)
        prompt = self._echoed(index)
        if prompt is None:
            return own
        return joined(echoed_logprobs(prompt.token_ids, self._scores_of(index), self.names), own)

    def _prompt_logprobs(self, index: int) -> PromptLogprobs | None:
        return prompt_logprobs(self._scores_of(index), self.names) if self.shows_prompt_logprobs else None

    def _echoed(self, index: int) -> EchoedPrompt | None:
        """The prompt that this output has to be preceded by."""
        return self.echo[index // self.params.n] if self.echo and index not in self._begun else None

    def _take_prompt_scores(self, index: int, output: RequestOutput) -> None:
        if output.prompt_logprobs:
            self._prompt_scores[index // self.params.n] = output.prompt_logprobs

    def _scores_of(self, index: int) -> Sequence[TokenLogprobs]:
        return self._prompt_scores.get(index // self.params.n, ())

    def _counted(self, usage: Usage) -> Usage:
        if self.shows_output:
            return usage
        details = usage.prompt_tokens_details
        return Usage.of(usage.prompt_tokens, 0, 0 if details is None else details.cached_tokens)

    def _chunk(self, choices: list[CompletionChunkChoice], usage: Usage | None) -> bytes:
        chunk = CompletionChunk(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)
        return encode_event(_encode(chunk))


def completion_format(
    request: CompletionRequest, params: SamplingParams, tokenizer: Tokenizer, echo: Sequence[EchoedPrompt]
) -> CompletionFormat:
    """`echo` is one for each prompt, or empty."""
    return CompletionFormat(
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=request.model,
        params=params,
        names=TokenNames(tokenizer, as_ids=bool(request.return_tokens_as_token_ids)),
        echo=echo,
        shows_prompt_logprobs=request.prompt_logprobs is not None,
        shows_output=not request.wants_prompt_only,
    )
