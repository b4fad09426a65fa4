"""What the engine gives back to a person or a server: text. One OutputText per request turns token deltas into it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from descant_engine.request import EngineRequest, FinishReason, RequestTimes, TokenDelta, TokenLogprobs
from descant_engine.sampling_params import SamplingParams
from descant_engine.text.detokenizer import Detokenizer
from descant_engine.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request so far."""

    prompt_tokens: int
    """0 for each but the first of several samples, or of those chosen, which share one prompt."""
    completion_tokens: int
    """Up to and with the token that completed a stop string, and the stop or end-of-sequence token."""
    cached_tokens: int
    """Prompt tokens whose KV was in the prefix cache."""


class ScoredToken(NamedTuple):
    """A token that has a part in the output's text, and its log-probabilities."""

    text_offset: int
    """Characters of the output before it; those that complete a character together have the same."""
    logprobs: TokenLogprobs


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What has come since the output before: text, tokens and log-probabilities are differences, `usage` the total."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    usage: Usage
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or the id from `stop_token_ids` that ended the output; None for the model's own end."""
    error: str | None = None
    """With FinishReason.ERROR and UNMET: what went wrong, for the client."""
    logprobs: tuple[ScoredToken, ...] = ()
    """If they were asked for: of each token whose text is shown by now. A token that is no part of the text, as the one
    that ended it, has none."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """If they were asked for: with the first output, of each prompt token but the first."""
    times: RequestTimes | None = None
    """The latest that is known; with the first output and with the last."""
    pooled: bytes | None = None
    """The vector that was asked for instead of tokens: float32, in this machine's order."""

    def followed_by(self, later: "RequestOutput") -> "RequestOutput":
        """Both in one, for a reader who takes them late."""
        return replace(
            later,
            text=self.text + later.text,
            token_ids=self.token_ids + later.token_ids,
            logprobs=self.logprobs + later.logprobs,
            prompt_logprobs=self.prompt_logprobs + later.prompt_logprobs,
            times=later.times or self.times,
        )

    @property
    def mean_logprob(self) -> float:
        """Of the tokens in `logprobs`; the lowest number there is without any."""
        if not self.logprobs:
            return float("-inf")
        return sum(token.logprobs.logprob for token in self.logprobs) / len(self.logprobs)


class OutputReader(Protocol):
    """Turns one request's deltas into outputs."""

    @property
    def request_id(self) -> str: ...

    @property
    def num_prompt_tokens(self) -> int:
        """To be counted for this request."""

    def apply(self, delta: TokenDelta) -> RequestOutput | None:
        """None if the output had ended before this delta."""


class PooledOutput:
    """For a request that gets a vector: one delta, one output."""

    def __init__(self, request: EngineRequest) -> None:
        self.request_id = request.request_id
        self.num_prompt_tokens = len(request.prompt_token_ids)

    def apply(self, delta: TokenDelta) -> RequestOutput | None:
        return RequestOutput(
            request_id=self.request_id,
            text="",
            token_ids=(),
            usage=Usage(self.num_prompt_tokens, completion_tokens=0, cached_tokens=delta.num_cached_tokens),
            finish_reason=delta.finish_reason,
            error=delta.error,
            times=delta.times,
            pooled=delta.pooled,
        )


def chosen_samples(outputs: Sequence[RequestOutput], params: SamplingParams) -> list[RequestOutput]:
    """Of a prompt's complete samples those that were asked for: all, or the `n` whose tokens are likeliest on average,
    best first. What concerns the prompt is with the first of them."""
    if params.num_samples == params.n:
        return list(outputs)
    best = sorted(outputs, key=lambda output: output.mean_logprob, reverse=True)[: params.n]
    best = [_with_prompt_of(outputs[0] if rank == 0 else None, output) for rank, output in enumerate(best)]
    return best if params.logprobs is not None else [replace(output, logprobs=()) for output in best]


def _with_prompt_of(other: RequestOutput | None, output: RequestOutput) -> RequestOutput:
    """`output`, to which what `other` says of their prompt belongs; nothing if that is None."""
    usage = Usage(
        prompt_tokens=0 if other is None else other.usage.prompt_tokens,
        completion_tokens=output.usage.completion_tokens,
        cached_tokens=0 if other is None else other.usage.cached_tokens,
    )
    return replace(output, usage=usage, prompt_logprobs=() if other is None else other.prompt_logprobs)


class OutputText:
    """The output of one request as text, fed with the engine's deltas in order.

    A stop string ends the output here, before the engine knows: then `finish_reason` is set in an output whose delta
    had none, and the caller aborts the request in the engine. Deltas after the end give nothing.
    """

    def __init__(self, request: EngineRequest, tokenizer: Tokenizer, *, continues_text: bool) -> None:
        self.is_finished = False
        self._request = request
        self._detokenizer = Detokenizer(tokenizer, request.params, continues_text=continues_text)
        self._num_shown = 0
        self._num_hidden_tokens = 0
        """The token that ended the output, if it is no part of its text."""
        self._held: list[ScoredToken] = []
        """Their text is not shown yet."""

    @property
    def request_id(self) -> str:
        return self._request.request_id

    @property
    def num_prompt_tokens(self) -> int:
        """To be counted for this request."""
        return 0 if self._request.sample_of is not None else len(self._request.prompt_token_ids)

    def apply(self, delta: TokenDelta) -> RequestOutput | None:
        """None if the output had ended before this delta."""
        if self.is_finished:
            return None
        taken_before = self._detokenizer.num_tokens
        text = self._feed(delta)
        if delta.finish_reason is not None:
            text += self._detokenizer.finish()
        self._num_shown += len(text)
        if (stop_string := self._detokenizer.stop_string) is not None:
            self._num_hidden_tokens = 0
            token_ids = tuple(delta.token_ids[: self._detokenizer.num_tokens - taken_before])
            return self._output(delta, text, token_ids, FinishReason.STOP, stop_string)
        stop_token_id = delta.stop_token_id if delta.stop_token_id in self._request.params.stop_token_ids else None
        return self._output(delta, text, tuple(delta.token_ids), delta.finish_reason, stop_token_id)

    def _feed(self, delta: TokenDelta) -> str:
        hides_last = delta.stop_token_id is not None and not self._request.params.include_stop_str_in_output
        self._num_hidden_tokens = int(hides_last)
        token_ids = delta.token_ids[: len(delta.token_ids) - self._num_hidden_tokens]
        if not delta.logprobs.sampled:
            return self._detokenizer.feed(token_ids)
        text = ""
        for token_id, logprobs in zip(token_ids, delta.logprobs.sampled, strict=False):
            self._held.append(ScoredToken(self._detokenizer.offset_of(token_id), logprobs))
            text += self._detokenizer.feed((token_id,))
        return text

    def _output(
        self,
        delta: TokenDelta,
        text: str,
        token_ids: tuple[int, ...],
        finish_reason: FinishReason | None,
        stop_reason: str | int | None,
    ) -> RequestOutput:
        self.is_finished = finish_reason is not None
        return RequestOutput(
            request_id=self.request_id,
            text=text,
            token_ids=token_ids,
            usage=self._usage(delta),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            error=delta.error,
            logprobs=self._release_shown() if self._held else (),
            prompt_logprobs=delta.logprobs.prompt,
            times=delta.times,
        )

    def _usage(self, delta: TokenDelta) -> Usage:
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self._detokenizer.num_tokens + self._num_hidden_tokens,
            cached_tokens=delta.num_cached_tokens if self._request.sample_of is None else 0,
        )

    def _release_shown(self) -> tuple[ScoredToken, ...]:
        """The tokens that have a part in the text shown; at the end also those without any text of their own."""
        ends_with_all = self.is_finished and self._detokenizer.stop_string is None
        shown = [token for token in self._held if ends_with_all or token.text_offset < self._num_shown]
        del self._held[: len(shown)]
        return tuple(shown)
