"""What the engine gives back to a person or a server: text. One OutputText per request turns token deltas into it."""

from dataclasses import dataclass

from descant_engine.request import EngineRequest, FinishReason, TokenDelta
from descant_engine.text.detokenizer import Detokenizer
from descant_engine.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request so far."""

    prompt_tokens: int
    completion_tokens: int
    """Up to and with the token that completed a stop string, and the stop or end-of-sequence token."""
    cached_tokens: int
    """Prompt tokens whose KV was in the prefix cache."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What has come since the output before: `text` and `token_ids` are differences, `usage` is the total."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    usage: Usage
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or the id from `stop_token_ids` that ended the output; None for the model's own end."""
    error: str | None = None
    """With FinishReason.ERROR: what went wrong, for the client."""

    def followed_by(self, later: "RequestOutput") -> "RequestOutput":
        """Both in one, for a reader who takes them late."""
        return RequestOutput(
            request_id=self.request_id,
            text=self.text + later.text,
            token_ids=self.token_ids + later.token_ids,
            usage=later.usage,
            finish_reason=later.finish_reason,
            stop_reason=later.stop_reason,
            error=later.error,
        )


class OutputText:
    """The output of one request as text, fed with the engine's deltas in order.

    A stop string ends the output here, before the engine knows: then `finish_reason` is set in an output whose delta
    had none, and the caller aborts the request in the engine. Deltas after the end give nothing.
    """

    def __init__(self, request: EngineRequest, tokenizer: Tokenizer, *, continues_text: bool) -> None:
        self.is_finished = False
        self._request = request
        self._detokenizer = Detokenizer(tokenizer, request.params, continues_text=continues_text)
        self._num_stop_tokens = 0

    @property
    def request_id(self) -> str:
        return self._request.request_id

    @property
    def num_prompt_tokens(self) -> int:
        return len(self._request.prompt_token_ids)

    def apply(self, delta: TokenDelta) -> RequestOutput | None:
        """None if the output had ended before this delta."""
        if self.is_finished:
            return None
        taken_before = self._detokenizer.num_tokens
        # A token that ends the output is no part of its text.
        self._num_stop_tokens = 0 if delta.stop_token_id is None else 1
        text_token_ids = delta.token_ids[: len(delta.token_ids) - self._num_stop_tokens]
        text = self._detokenizer.feed(text_token_ids)
        if delta.finish_reason is not None:
            text += self._detokenizer.finish()
        if self._detokenizer.stop_string is not None:
            return self._stopped(delta, text, self._detokenizer.num_tokens - taken_before)
        self.is_finished = delta.finish_reason is not None
        return self._output(
            delta, text, tuple(delta.token_ids), delta.finish_reason, self._own_stop_token(delta.stop_token_id)
        )

    def _stopped(self, delta: TokenDelta, text: str, num_taken: int) -> RequestOutput:
        self.is_finished = True
        self._num_stop_tokens = 0
        token_ids = tuple(delta.token_ids[:num_taken])
        return self._output(delta, text, token_ids, FinishReason.STOP, self._detokenizer.stop_string)

    def _output(
        self,
        delta: TokenDelta,
        text: str,
        token_ids: tuple[int, ...],
        finish_reason: FinishReason | None,
        stop_reason: str | int | None,
    ) -> RequestOutput:
        usage = Usage(
            prompt_tokens=len(self._request.prompt_token_ids),
            completion_tokens=self._detokenizer.num_tokens + self._num_stop_tokens,
            cached_tokens=delta.num_cached_tokens,
        )
        return RequestOutput(self.request_id, text, token_ids, usage, finish_reason, stop_reason, delta.error)

    def _own_stop_token(self, stop_token_id: int | None) -> int | None:
        return stop_token_id if stop_token_id in self._request.params.stop_token_ids else None
