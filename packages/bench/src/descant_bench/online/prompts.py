"""What the requests ask: random tokens, conversations from a ShareGPT file, or prefixes that repeat."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

DEFAULT_VOCAB_SIZE = 32_000
LOWEST_TOKEN_ID = 100
_WORDS = ("air", "art", "ask", "big", "box", "buy", "car", "cat", "cup", "cut", "day", "dog", "eat", "egg", "end")
"""Common words, each a token of nearly every vocabulary."""


class Tokenizer(Protocol):
    """What of `descant_engine.text.tokenizer` is used here."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """`num_prompt_tokens` is what is meant; the server's usage says what it was."""

    prompt: str | tuple[int, ...]
    num_prompt_tokens: int
    max_tokens: int


class TokenSource:
    """Random prompts of a given number of tokens: text by the tokenizer if there is one, else token ids, or words for
    servers that take text only."""

    def __init__(
        self,
        rng: random.Random,
        tokenizer: Tokenizer | None,
        *,
        needs_text: bool,
        vocab_size: int = DEFAULT_VOCAB_SIZE,
    ) -> None:
        self._rng = rng
        self._tokenizer = tokenizer
        self._needs_text = needs_text
        self._vocab_size = vocab_size if tokenizer is None else tokenizer.vocab_size

    def ids(self, count: int) -> tuple[int, ...]:
        lowest = min(LOWEST_TOKEN_ID, self._vocab_size // 2)
        return tuple(self._rng.randrange(lowest, self._vocab_size) for _ in range(count))

    def prompt(self, token_ids: Sequence[int]) -> str | tuple[int, ...]:
        """These tokens as the server can take them. Text is cut to length after a round through the tokenizer."""
        if self._tokenizer is None:
            return _words(token_ids) if self._needs_text else tuple(token_ids)
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        again = self._tokenizer.encode(text, add_special_tokens=False)[: len(token_ids)]
        return self._tokenizer.decode(again, skip_special_tokens=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPrompts:
    input_len: int
    output_len: int
    range_ratio: float = 0.0
    """Lengths are drawn from [length * (1 - ratio), length * (1 + ratio)]."""
    prefix_len: int = 0
    """Tokens in front that all prompts share."""

    def requests(self, count: int, source: TokenSource, rng: random.Random) -> Iterator[SampleRequest]:
        prefix = source.ids(self.prefix_len)
        for _ in range(count):
            token_ids = prefix + source.ids(self._draw(self.input_len, rng))
            yield SampleRequest(source.prompt(token_ids), len(token_ids), self._draw(self.output_len, rng))

    def _draw(self, length: int, rng: random.Random) -> int:
        low, high = int(length * (1 - self.range_ratio)), int(length * (1 + self.range_ratio))
        return max(1, rng.randint(low, high))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRepetition:
    prefix_len: int
    suffix_len: int
    num_prefixes: int
    output_len: int

    def requests(self, count: int, source: TokenSource, rng: random.Random) -> Iterator[SampleRequest]:
        prefixes = [source.ids(self.prefix_len) for _ in range(self.num_prefixes)]
        order = [index % self.num_prefixes for index in range(count)]
        rng.shuffle(order)
        for index in order:
            token_ids = prefixes[index] + source.ids(self.suffix_len)
            yield SampleRequest(source.prompt(token_ids), len(token_ids), self.output_len)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareGpt:
    """The first question and answer of each conversation in a file of ShareGPT's format: a list of
    {"conversations": [{"value": question}, {"value": answer}, ...]}. As many tokens are asked for as the answer has.
    """

    path: Path
    output_len: int | None = None
    max_input_len: int = 1024
    max_total_len: int = 2048

    def requests(self, count: int, tokenizer: Tokenizer | None, rng: random.Random) -> Iterator[SampleRequest]:
        """Raises ValueError if the file has no usable conversation."""
        pairs = list(_first_turns(self.path))
        rng.shuffle(pairs)
        usable = [request for pair in pairs if (request := self._request(*pair, tokenizer)) is not None]
        if not usable:
            raise ValueError(f"{self.path} has no conversation whose first question and answer are of usable length")
        for index in range(count):
            yield usable[index % len(usable)]

    def _request(self, question: str, answer: str, tokenizer: Tokenizer | None) -> SampleRequest | None:
        """None if it is too short or too long to be of use, by vLLM's limits."""
        num_input = count_tokens(question, tokenizer)
        num_output = self.output_len or count_tokens(answer, tokenizer)
        too_long = num_input > self.max_input_len or num_input + num_output > self.max_total_len
        return None if num_input < 4 or num_output < 4 or too_long else SampleRequest(question, num_input, num_output)


def count_tokens(text: str, tokenizer: Tokenizer | None) -> int:
    """By rule of thumb without a tokenizer: four characters a token."""
    return -(-len(text) // 4) if tokenizer is None else len(tokenizer.encode(text, add_special_tokens=False))


def _first_turns(path: Path) -> Iterator[tuple[str, str]]:
    """Raises ValueError if the file is not in ShareGPT's format."""
    conversations = json.loads(path.read_text())
    if not isinstance(conversations, list):
        raise ValueError(f"{path} is not in ShareGPT's format: it must be a list of objects with `conversations`")
    for entry in conversations:
        turns = entry.get("conversations") or []
        if len(turns) >= 2:
            yield turns[0]["value"], turns[1]["value"]


def _words(token_ids: Sequence[int]) -> str:
    return " ".join(_WORDS[token_id % len(_WORDS)] for token_id in token_ids)
