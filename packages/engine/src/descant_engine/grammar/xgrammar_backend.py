"""xgrammar (arXiv 2411.15100): masks from tables made at compile time, microseconds each; compiling takes up to
seconds, so it is done elsewhere and arrives here as bytes."""

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Self

import xgrammar as xgr

from descant_engine.grammar.matcher import Bitmask, BitmaskRow
from descant_engine.grammar.spec import GrammarKind, GrammarRefused, GrammarSpec
from descant_engine.grammar.vocabulary import Vocabulary

MAX_WHITESPACE = 12
"""Most whitespace characters in a row between the parts of a JSON value: enough to indent, too few to loop in."""


class XgrammarMatcher:
    def __init__(self, compiled: xgr.CompiledGrammar) -> None:
        self._matcher = xgr.GrammarMatcher(compiled)

    def accept(self, token_id: int) -> bool:
        try:
            return bool(self._matcher.accept_token(token_id))
        except RuntimeError:  # a check of the library's own that failed: this output's end, not the engine's
            return False

    def fill_bitmask(self, row: BitmaskRow) -> None:
        if self._matcher.is_terminated():  # behind a stop token, where it makes no mask
            row.fill(0)
            return
        try:
            self._matcher.fill_next_token_bitmask(row.reshape(1, -1))
        except RuntimeError:
            row.fill(0)

    @classmethod
    def fill_bitmasks(cls, places: Sequence[tuple[Self, int]], words: Bitmask, num_threads: int) -> None:
        """On one thread, whatever `num_threads`: the library would start new ones for each call, which takes longer."""
        going_on = [(matcher, index) for matcher, index in places if not matcher._matcher.is_terminated()]
        try:
            matchers, indices = [matcher._matcher for matcher, _ in going_on], [index for _, index in going_on]
            _batch().batch_fill_next_token_bitmask(matchers, words, indices)
        except RuntimeError:  # of one of them; it is not said of which
            going_on = []
        done = {index for _, index in going_on}
        for matcher, index in places:
            if index not in done:
                matcher.fill_bitmask(words[index])

    @property
    def mask_maker(self) -> "XgrammarMatcher":
        return self

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_completed())


@cache
def _batch() -> xgr.BatchGrammarMatcher:
    return xgr.BatchGrammarMatcher(max_threads=1)


class XgrammarGrammar:
    def __init__(self, compiled: xgr.CompiledGrammar) -> None:
        self._compiled = compiled
        self.num_bytes: int = compiled.memory_size_bytes

    def matcher(self) -> XgrammarMatcher:
        return XgrammarMatcher(self._compiled)


class XgrammarBackend:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens = xgr.TokenizerInfo(
            list(vocabulary.tokens),
            vocab_type=xgr.VocabType.RAW,
            vocab_size=vocabulary.size,
            stop_token_ids=list(vocabulary.stop_token_ids),
        )

    def load(self, data: str) -> XgrammarGrammar:
        """What `compile` made, in this process or another."""
        return XgrammarGrammar(xgr.CompiledGrammar.deserialize_json(data, self._tokens))

    def compile(self, spec: GrammarSpec) -> str:
        """Takes time and memory without bounds for some specs, and can end the process.

        Raises:
            GrammarRefused: it is malformed.
        """
        compiler = xgr.GrammarCompiler(self._tokens, max_threads=1, cache_enabled=False)
        try:
            data: str = _compile(compiler, spec).serialize_json()
        except (RuntimeError, ValueError) as error:
            raise GrammarRefused(_reason(error)) from error
        return data


def _compile(compiler: xgr.GrammarCompiler, spec: GrammarSpec) -> xgr.CompiledGrammar:
    match spec.kind:
        case GrammarKind.JSON_SCHEMA:
            return compiler.compile_json_schema(spec.text, strict_mode=False, max_whitespace_cnt=MAX_WHITESPACE)
        case GrammarKind.REGEX:
            return compiler.compile_regex(spec.text)
        case GrammarKind.CHOICE:
            return compiler.compile_grammar(f"root ::= {' | '.join(map(_quote, json.loads(spec.text)))}")
        case GrammarKind.EBNF:
            return compiler.compile_grammar(spec.text)
        case GrammarKind.ALTERNATIVES:
            raise GrammarRefused("it needs the llguidance backend")
        case GrammarKind.STRUCTURAL_TAG:
            return compiler.compile_structural_tag(spec.text)


def _quote(text: str) -> str:
    """As a literal of xgrammar's EBNF, which has JSON's escapes but for pairs of surrogates."""
    return json.dumps(text, ensure_ascii=False)


def _reason(error: Exception) -> str:
    """Its messages begin with the time and the place in its source."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^(\[[\d:]+\]\s+)?\S+\.(cc|h):\d+:\s*", "", line).strip()
