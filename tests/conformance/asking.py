"""The official client asked in one way for chats and texts; every answer comes whole and streamed, and must agree."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pytest
from openai import BadRequestError, OpenAI
from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

HELLO: Final = [{"role": "user", "content": "Hello"}]
SEED: Final = 7
LOGPROB_TOLERANCE: Final = 1e-4
"""A float32 sum in another order: the second of two equal prompts is read from the prefix cache."""


@dataclass
class Choice:
    """One choice of an answer, in the same form however it came."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)
    """By index, the call's name and arguments."""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    top: list[dict[str, float]] = field(default_factory=list)
    """For each token, the likeliest ones at its place; empty where none were asked for."""
    text_offsets: list[int] = field(default_factory=list)
    """Of text completions."""


@dataclass(frozen=True)
class Answer:
    choices: list[Choice]
    usage: CompletionUsage
    prompt_logprobs: list[dict[str, dict[str, Any]] | None] | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def texts(self) -> list[str]:
        return [choice.text for choice in self.choices]

    @property
    def num_tokens(self) -> int:
        return self.usage.completion_tokens


class Asking(Protocol):
    """One endpoint. Options are the official client's keywords; those that it doesn't know go into `extra_body`."""

    def ask(self, **options: Any) -> Answer:
        """The answer, which came whole and streamed alike."""

    def whole(self, **options: Any) -> Answer:
        """The answer in one piece."""

    def create(self, **options: Any) -> Any:
        """The client's own answer."""


@dataclass(frozen=True)
class Chats:
    """Greedy, eight tokens, unless the options say otherwise."""

    client: OpenAI
    model: str

    def ask(self, **options: Any) -> Answer:
        whole, streamed = self.whole(**options), self.streamed(**options)
        assert_agree(whole, streamed)
        return whole

    def whole(self, **options: Any) -> Answer:
        return _of_chat(self.create(**options))

    def streamed(self, **options: Any) -> Answer:
        chunks = list(self.create(stream=True, stream_options={"include_usage": True}, **options))
        return _of_chat_chunks(chunks)

    def create(self, **options: Any) -> Any:
        defaults: dict[str, Any] = {"model": self.model, "messages": HELLO, "seed": SEED, "temperature": 0}
        if not options.keys() & {"max_tokens", "max_completion_tokens"}:
            defaults["max_completion_tokens"] = 8
        return call(self.client.chat.completions.create, defaults | options)


@dataclass(frozen=True)
class Completions:
    """Greedy, eight tokens, unless the options say otherwise."""

    client: OpenAI
    model: str

    def ask(self, **options: Any) -> Answer:
        whole, streamed = self.whole(**options), self.streamed(**options)
        assert_agree(whole, streamed)
        return whole

    def whole(self, **options: Any) -> Answer:
        return _of_completion(self.create(**options))

    def streamed(self, **options: Any) -> Answer:
        chunks = list(self.create(stream=True, stream_options={"include_usage": True}, **options))
        return _of_completion_chunks(chunks)

    def create(self, **options: Any) -> Any:
        defaults = {"model": self.model, "prompt": "Hello", "seed": SEED, "temperature": 0, "max_tokens": 8}
        return call(self.client.completions.create, defaults | options)


def call(method: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """The client's method, with what it has no keyword for in the request's body."""
    known = inspect.signature(method).parameters
    own = {name: value for name, value in options.items() if name in known}
    extra = {name: value for name, value in options.items() if name not in known}
    return method(**own, extra_body=extra) if extra else method(**own)


def assert_refused(send: Callable[..., object], field: str, value: object, **others: Any) -> None:
    """400 in OpenAI's shape, which names the field in `param` and in its message."""
    with pytest.raises(BadRequestError) as refusal:
        send(**{field: value}, **others)
    assert refusal.value.type == "invalid_request_error"
    assert str(refusal.value.param).partition(".")[0].partition("[")[0] == field, refusal.value.param
    assert field in refusal.value.message


def assert_agree(whole: Answer, streamed: Answer) -> None:
    """Token for token; log-probabilities to rounding; all counts but that of the prefix cache."""
    for one, other in zip(whole.choices, streamed.choices, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=LOGPROB_TOLERANCE)
        for some, others in zip(one.top, other.top, strict=True):
            assert some == pytest.approx(others, abs=LOGPROB_TOLERANCE)
        assert _without_numbers(one) == _without_numbers(other)
    assert _counts(whole.usage) == _counts(streamed.usage)
    assert (whole.prompt_logprobs is None) == (streamed.prompt_logprobs is None)
    for one_place, other_place in zip(whole.prompt_logprobs or [], streamed.prompt_logprobs or [], strict=True):
        assert _by_token(one_place) == pytest.approx(_by_token(other_place), abs=LOGPROB_TOLERANCE)


def _without_numbers(choice: Choice) -> tuple[object, ...]:
    ended = (choice.finish_reason, choice.stop_reason)
    return (choice.text, choice.reasoning, choice.calls, *ended, choice.tokens, choice.text_offsets)


def _by_token(place: dict[str, dict[str, Any]] | None) -> dict[str, float]:
    return {token: score["logprob"] for token, score in (place or {}).items()}


def _counts(usage: CompletionUsage) -> tuple[int, ...]:
    """Asserts that they add up."""
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    reasoning = usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else 0
    assert 0 <= (cached or 0) <= usage.prompt_tokens
    assert 0 <= (reasoning or 0) <= usage.completion_tokens
    return usage.prompt_tokens, usage.completion_tokens, reasoning or 0


def _of_chat(answer: ChatCompletion) -> Answer:
    assert answer.usage is not None
    choices = []
    for each in answer.choices:
        choice = Choice(finish_reason=each.finish_reason, stop_reason=getattr(each, "stop_reason", None))
        choice.text = each.message.content or ""
        choice.reasoning = getattr(each.message, "reasoning_content", None) or ""
        for index, made in enumerate(each.message.tool_calls or []):
            assert made.type == "function"
            choice.calls[index] = [made.function.name, made.function.arguments]
        _add_scores(choice, each.logprobs)
        choices.append(choice)
    return Answer(choices, answer.usage, getattr(answer, "prompt_logprobs", None))


def _of_chat_chunks(chunks: list[ChatCompletionChunk]) -> Answer:
    """Asserts the order of a stream: roles first, the end of each choice last, then the usage by itself."""
    *body, last = chunks
    assert not last.choices
    assert last.usage is not None
    assert all(chunk.usage is None for chunk in body)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    choices: dict[int, Choice] = {}
    for each in (each for chunk in body for each in chunk.choices):
        assert (each.index in choices) == (each.delta.role is None)
        choice = choices.setdefault(each.index, Choice())
        assert choice.finish_reason is None
        _add_delta(choice, each.delta)
        _add_scores(choice, each.logprobs)
        choice.finish_reason, choice.stop_reason = each.finish_reason, getattr(each, "stop_reason", None)
    given = [scores for chunk in body if (scores := getattr(chunk, "prompt_logprobs", None))]
    return Answer([choices[index] for index in range(len(choices))], last.usage, given[0] if given else None)


def _add_delta(choice: Choice, delta: Any) -> None:
    choice.text += delta.content or ""
    choice.reasoning += getattr(delta, "reasoning_content", None) or ""
    for piece in delta.tool_calls or []:
        made = choice.calls.setdefault(piece.index, ["", ""])
        made[0] += piece.function.name or ""
        made[1] += piece.function.arguments or ""


def _add_scores(choice: Choice, logprobs: Any) -> None:
    for token in logprobs.content or [] if logprobs else []:
        choice.tokens.append(token.token)
        choice.logprobs.append(token.logprob)
        choice.top.append({top.token: top.logprob for top in token.top_logprobs})


def _of_completion(answer: Completion) -> Answer:
    assert answer.usage is not None
    given = [getattr(each, "prompt_logprobs", None) for each in answer.choices]
    return Answer(_texts(answer.choices), answer.usage, given[0])


def _of_completion_chunks(chunks: list[Completion]) -> Answer:
    *body, last = chunks
    assert not last.choices
    assert last.usage is not None
    assert all(chunk.usage is None for chunk in body)
    pieces = [each for chunk in body for each in chunk.choices]
    given = [scores for each in pieces if (scores := getattr(each, "prompt_logprobs", None))]
    return Answer(_texts(pieces), last.usage, given[0] if given else None)


def _texts(pieces: Iterable[Any]) -> list[Choice]:
    choices: dict[int, Choice] = {}
    for each in pieces:
        choice = choices.setdefault(each.index, Choice())
        assert choice.finish_reason is None
        choice.text += each.text
        choice.finish_reason, choice.stop_reason = each.finish_reason, getattr(each, "stop_reason", None)
        if each.logprobs:
            choice.tokens += each.logprobs.tokens
            choice.logprobs += each.logprobs.token_logprobs
            choice.top += [top or {} for top in each.logprobs.top_logprobs or []]
            choice.text_offsets += each.logprobs.text_offset
    return [choices[index] for index in range(len(choices))]
