"""llguidance: an Earley parser over lazily built lexer automata. No compile time, a mask in some 50 microseconds,
nearly all of JSON Schema, and a budget on every step, so no grammar can stall the engine."""

import json
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Self

from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

from descant_engine.grammar.alternatives import lark_of
from descant_engine.grammar.matcher import Bitmask, BitmaskRow
from descant_engine.grammar.spec import GrammarKind, GrammarRefused, GrammarSpec
from descant_engine.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

GRAMMAR_BYTES = 1 << 16
"""A guess: automata grow as they are used."""
JSON_OPTIONS: "JsonCompileOptions" = {"whitespace_pattern": "[ \\n\\r\\t]{1,12}"}
"""As much whitespace as xgrammar is allowed."""
SLICES = (
    *(f"[a-z]{{1,{most}}}" for most in (1, 2, 3, 4, 5, 6, 7, 8)),
    *(rf'[^"\\\x00-\x1F\x7F]{{1,{most}}}' for most in (2, 4, 6, 8)),
)
"""Sets of tokens that a mask takes as a whole where the grammar lets it, each without those before it; llguidance's own
sets of free text follow. Lower-case words are most of a vocabulary: inside `^[a-z_]{1,16}$` a mask takes a third of the
time. The short ones are for the last characters of a string of bounded length."""
NO_TOKEN = b"\xff"
"""Begins what llguidance takes for a special token; no text has this byte."""


class LlguidanceMatcher:
    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def accept(self, token_id: int) -> bool:
        return bool(self._matcher.consume_token(token_id))

    def fill_bitmask(self, row: BitmaskRow) -> None:
        if self._matcher.is_error():
            row.fill(0)
        else:
            fill_next_token_bitmask(self._matcher, row.reshape(1, -1))

    @classmethod
    def fill_bitmasks(cls, places: Sequence[tuple[Self, int]], words: Bitmask, num_threads: int) -> None:
        if num_threads == 1:
            # By this thread: another would take a core from torch's, which wait for the next product without sleeping.
            for matcher, index in places:
                matcher.fill_bitmask(words[index])
            return
        for matcher, index in places:
            if matcher._matcher.is_error():
                words[index].fill(0)
        matchers = [(matcher._matcher, index) for matcher, index in places if not matcher._matcher.is_error()]
        if matchers:
            fill_next_token_bitmask_par(_executor(num_threads), matchers, words)

    @property
    def mask_maker(self) -> "LlguidanceMatcher":
        return self

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_accepting())


@cache
def _executor(num_threads: int) -> LLExecutor:
    return LLExecutor(num_threads)


class LlguidanceGrammar:
    num_bytes = GRAMMAR_BYTES

    def __init__(self, first: LLMatcher) -> None:
        self._first = first

    def matcher(self) -> LlguidanceMatcher:
        return LlguidanceMatcher(self._first.deep_copy())


class LlguidanceBackend:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens = LLTokenizer(
            TokenizerWrapper(_TokenTable(vocabulary)),
            n_vocab=vocabulary.size,
            eos_token=list(vocabulary.stop_token_ids) or None,
            slices=[*SLICES, *LLTokenizer.general_slices()],
        )
        self._limits = LLParserLimits(verbose_errors=False)

    def load(self, grammar: str) -> LlguidanceGrammar:
        """What `compile` made, in this process or another.

        Raises:
            GrammarRefused: this process has other limits than the one that compiled it.
        """
        matcher = LLMatcher(self._tokens, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise GrammarRefused(_reason(matcher.get_error()))
        # The automata that the first mask needs are built now, for all matchers.
        matcher.compute_bitmask()
        return LlguidanceGrammar(matcher)

    def compile(self, spec: GrammarSpec) -> str:
        """Checked in full: keywords that it does not know are refused, and so are many contradictions.

        Raises:
            GrammarRefused: it is malformed, unsupported, contradicts itself or exceeds the limits.
        """
        grammar = _grammar(spec)
        is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._tokens, limits=self._limits)
        if is_error:
            raise GrammarRefused(_reason(messages[0]))
        return grammar


class _TokenTable:
    """The vocabulary in the form that llguidance asks for."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = vocabulary.stop_token_ids[0] if vocabulary.stop_token_ids else _first_special(vocabulary)
        self.tokens = [data or NO_TOKEN + b"<%d>" % index for index, data in enumerate(vocabulary.tokens)]
        self.special_token_ids = [index for index, data in enumerate(vocabulary.tokens) if not data]

    def __call__(self, data: bytes) -> list[int]:
        """For text that a grammar forces."""
        return self._vocabulary.encode_greedily(data)


def _first_special(vocabulary: Vocabulary) -> int:
    """For models without an end-of-sequence token: one that no grammar allows stands in for it."""
    return next((index for index, data in enumerate(vocabulary.tokens) if not data), 0)


def _grammar(spec: GrammarSpec) -> str:
    match spec.kind:
        case GrammarKind.JSON_SCHEMA:
            return str(LLMatcher.grammar_from_json_schema(spec.text, overrides=JSON_OPTIONS))
        case GrammarKind.REGEX:
            return str(LLMatcher.grammar_from_regex(spec.text))
        case GrammarKind.CHOICE:
            choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(spec.text))
            return str(LLMatcher.grammar_from_lark(f"start: {choices}"))
        case GrammarKind.EBNF:
            return str(LLMatcher.grammar_from_lark(spec.text))
        case GrammarKind.ALTERNATIVES:
            return str(LLMatcher.grammar_from_lark(lark_of(spec.text, JSON_OPTIONS)))
        case GrammarKind.STRUCTURAL_TAG:
            raise GrammarRefused("structural tags need the xgrammar backend")


def _reason(message: str) -> str:
    """Regex errors have several lines: the pattern, a mark below it, and what is wrong."""
    lines = (message.strip() or "it is malformed").splitlines()
    wrong = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return f"{lines[0]} {wrong[0]}" if wrong else lines[0]
