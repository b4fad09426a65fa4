"""Where free text before a grammar begins: with the whole opening, and with nothing that only begins like it."""

import numpy as np

from descant_engine.grammar.after_text import AfterTextMatcher
from descant_engine.grammar.llguidance_backend import LlguidanceBackend
from descant_engine.grammar.matcher import num_words
from descant_engine.grammar.spec import GrammarKind, GrammarSpec
from descant_engine.grammar.vocabulary import Vocabulary

EOS = 0
VOCABULARY = Vocabulary.of_model((b"", *(bytes([i]) for i in range(256)), b"[think]"), 260, (EOS,))
WHOLE = 257
"""The one token of "[think]"."""


def matcher(choice: str, opening: str) -> AfterTextMatcher:
    backend = LlguidanceBackend(VOCABULARY)
    inner = backend.load(backend.compile(GrammarSpec(GrammarKind.CHOICE, f'["{choice}"]'))).matcher()
    return AfterTextMatcher(inner, VOCABULARY, opening, end="</t>")


def allowed(after: AfterTextMatcher) -> set[int]:
    row = np.zeros(num_words(VOCABULARY.size), dtype=np.int32)
    after.fill_bitmask(row)
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def token(character: str) -> int:
    return ord(character) + 1


def test_an_opening_that_has_begun_has_to_be_finished() -> None:
    after = matcher("yes", opening="<t>")
    assert allowed(after) == {token("y"), token("<")}
    assert after.accept(token("<"))
    assert allowed(after) == {token("t")}
    for character in "t>no</t>":
        assert token(character) in allowed(after)
        assert after.accept(token(character))
    assert allowed(after) == {token("y")}


def test_what_does_not_go_on_as_the_opening_is_no_opening() -> None:
    after = matcher("yes", opening="<t>")
    assert after.accept(token("<"))
    assert not after.accept(token("a"))


def test_a_token_for_the_opening_is_its_one_beginning() -> None:
    after = matcher("yes", opening="[think]")
    assert allowed(after) == {token("y"), WHOLE}
    assert after.accept(WHOLE)
    assert {token("a"), token("<")} <= allowed(after)
    assert EOS not in allowed(after)


def test_a_grammar_that_begins_as_the_opening_does_is_the_grammar() -> None:
    after = matcher("<a>", opening="<t>")
    for character in "<a>":
        assert allowed(after) == {token(character)}
        assert after.accept(token(character))
    assert after.is_complete
