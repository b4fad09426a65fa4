"""Grammars of every kind through the real sandbox: what is allowed, what is refused and how soon, and who suffers."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from descant_engine.grammar.after_text import AfterTextMatcher
from descant_engine.grammar.alternatives import (
    Alternative,
    JsonPart,
    RegexPart,
    TextPart,
    TokenPart,
    alternatives_spec,
)
from descant_engine.grammar.compiler import MAX_PROVISIONAL, GrammarCompiler
from descant_engine.grammar.llguidance_backend import LlguidanceGrammar
from descant_engine.grammar.matcher import CompiledGrammar, Matcher, num_words
from descant_engine.grammar.sandbox_client import GrammarTimedOut
from descant_engine.grammar.spec import BackendName, GrammarKind, GrammarRefused, GrammarSpec
from descant_engine.grammar.vocabulary import Vocabulary
from descant_engine.request import EngineRequest, FinishReason, TokenDelta
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.grammar import GrammarEnd, RequestGrammars

EOS = 0
WORDS = (b"yes", b"no", b'{"', b'":', b"true")
VOCABULARY = Vocabulary.of_model((b"", *(bytes([i]) for i in range(256)), *WORDS), 300, (EOS,))
BOTH = (BackendName.XGRAMMAR, BackendName.LLGUIDANCE)
SECONDS = 60.0

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(VOCABULARY, BOTH)
    yield compiler
    compiler.close()


def schema(value: object) -> GrammarSpec:
    return GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(value))


def compiled(compiler: GrammarCompiler, spec: GrammarSpec) -> CompiledGrammar:
    return compiler.compile(spec).result(SECONDS)


def allowed(matcher: Matcher) -> set[int]:
    row = np.zeros(num_words(VOCABULARY.size), dtype=np.int32)
    matcher.fill_bitmask(row)
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def takes(grammar: CompiledGrammar, text: str) -> bool:
    """Whether the whole text is an output: each of its bytes is in the mask before it, and it may end there."""
    matcher = grammar.matcher()
    for byte in text.encode():
        if byte + 1 not in allowed(matcher) or not matcher.accept(byte + 1):
            return False
    return EOS in allowed(matcher) and matcher.is_complete


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}
NULL = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "null"}}}
CASES = [
    (schema(PERSON), ['{"name": "Bo", "age": 3}', '{"name":"","age":0}'], ['{"name": "Bo"}', "x"]),
    (schema(PERSON), [], ['{"name": 3, "age": 3}', '{"name": "Bo", "age": -1}', '{"name": "Bo", "age": 1, "more": 2}']),
    (schema({"type": "object"}), ["{}", '{"a": [1, null]}'], ["[]", "1"]),
    (schema({"type": "string", "maxLength": 3}), ['"abc"'], ['"abcd"']),
    (schema({"type": "string", "format": "date"}), ['"2026-11-21"'], ['"2026-21-11"', '"today"']),
    (schema({"type": "integer", "multipleOf": 5}), ["15"], ["16"]),
    (schema({"oneOf": [{"type": "integer"}, {"type": "null"}]}), ["1", "null"], ['"a"']),
    (schema({"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}), ["[[]]"], ["1"]),
    (GrammarSpec(GrammarKind.REGEX, "^[0-9]{3}-[a-z]+$"), ["123-ab"], ["12-ab", "123-"]),
    (GrammarSpec(GrammarKind.REGEX, "(?i)yes"), ["yEs"], ["no"]),
    (GrammarSpec(GrammarKind.REGEX, "[[:alpha:]]"), ["a", "Z"], [":]", "1"]),
    (GrammarSpec(GrammarKind.REGEX, "[a-z&&[^b]]{2}"), ["ac"], ["ab", "&&"]),
    (GrammarSpec(GrammarKind.CHOICE, '["yes", "no", "Ä\\n\\"x"]'), ["yes", "no", 'Ä\n"x'], ["ye", "yesno"]),
    (GrammarSpec(GrammarKind.EBNF, 'root ::= "a" root | "b"'), ["aab", "b"], ["a", "ba"]),
    (GrammarSpec(GrammarKind.EBNF, 'start: "a" | "b" C\nC: /[0-9]+/'), ["a", "b42"], ["b", "c"]),
    (
        GrammarSpec(
            GrammarKind.STRUCTURAL_TAG,
            json.dumps(
                {
                    "type": "structural_tag",
                    "structures": [{"begin": "<f>", "schema": PERSON, "end": "</f>"}],
                    "triggers": ["<f>"],
                }
            ),
        ),
        ["hello", 'x<f>{"name": "a", "age": 1}</f>y'],
        ["<f>nothing</f>"],
    ),
    (
        alternatives_spec(
            [
                Alternative((JsonPart(PERSON),)),
                Alternative((RegexPart("a/b|c"),)),
                Alternative((TextPart('<"c">\n'), JsonPart(NULL)), " "),
            ]
        ),
        ['{"name": "a", "age": 1}', "a/b", "c", '<"c">\nnull', '<"c">\nnull <"c">\nnull'],
        ['{"name": "a", "age": 1} c', '{"name": "a", "more": 2}', '<"c">\n', '<"c">\nnull<"c">\nnull', "null"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "inside", "outside"), CASES)
def test_allows_what_the_grammar_says(
    compiler: GrammarCompiler, spec: GrammarSpec, inside: list[str], outside: list[str]
) -> None:
    grammar = compiled(compiler, spec)
    assert [text for text in inside if not takes(grammar, text)] == []
    assert [text for text in outside if takes(grammar, text)] == []


def nested(depth: int) -> object:
    return {"type": "object", "properties": {"a": nested(depth - 1)}} if depth else {"type": "string"}


HOSTILE = [
    (schema({"$ref": "#"}), "no finite value"),
    (schema({"type": "array", "items": {"$ref": "#"}, "minItems": 1}), "no finite value"),
    (schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}), "no finite value"),
    (schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
    (schema({"allOf": [{"type": "string"}, {"type": "integer"}]}), "incompatible"),
    (schema({"enum": []}), "empty"),
    (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (schema({"type": "wizard"}), "wizard"),
    (schema({"$ref": "https://example.com/schema"}), "example.com"),
    (schema(nested(200)), "levels deep"),
    (GrammarSpec(GrammarKind.JSON_SCHEMA, "[" * 100_000), "levels deep"),
    (GrammarSpec(GrammarKind.JSON_SCHEMA, "{"), "not JSON"),
    (GrammarSpec(GrammarKind.REGEX, "a(?=b)"), "look-around"),
    (GrammarSpec(GrammarKind.REGEX, "(("), "regex"),
    (GrammarSpec(GrammarKind.EBNF, "root ::= nothing"), "nothing"),
    (GrammarSpec(GrammarKind.EBNF, "no grammar"), "Expected token"),
    (GrammarSpec(GrammarKind.STRUCTURAL_TAG, '{"type": "structural_tag"}'), "format"),
    (GrammarSpec(GrammarKind.ALTERNATIVES, '{"parts": []}'), "no alternatives"),
    (alternatives_spec([Alternative((JsonPart({"$ref": "#"}),))]), "no finite"),
]


@pytest.mark.parametrize(("spec", "reason"), HOSTILE)
def test_what_is_impossible_is_refused_with_the_reason(
    compiler: GrammarCompiler, spec: GrammarSpec, reason: str
) -> None:
    with pytest.raises(GrammarRefused, match=reason):
        compiled(compiler, spec)


def test_the_sandbox_outlives_what_exhausts_it(compiler: GrammarCompiler) -> None:
    """Vast and explosive specs are refused or end up with the backend that has budgets, at a bounded cost of CPU time;
    an ordinary one beside them is served."""
    vast = [
        schema(
            {"type": "object", "properties": {f"p{i}": {"pattern": f"^(a|b|c){{1,{i + 9}}}$"} for i in range(2000)}}
        ),
        GrammarSpec(GrammarKind.REGEX, "((a{0,100}){0,100}){0,100}"),
        GrammarSpec(GrammarKind.REGEX, "(.*a.{400}){50}"),
        GrammarSpec(GrammarKind.EBNF, "root ::= [a-z]{1,100000} [0-9]{1,100000}"),
    ]
    futures = [compiler.compile(spec) for spec in vast]
    ordinary = compiler.compile(schema({"type": "boolean"}))
    assert takes(ordinary.result(SECONDS), "true")
    done, not_done = wait(futures, SECONDS)
    assert not not_done
    assert all(future.exception() is None or isinstance(future.exception(), GrammarRefused) for future in done)


def test_a_refusal_is_remembered(compiler: GrammarCompiler) -> None:
    spec = GrammarSpec(GrammarKind.REGEX, "(((")
    with pytest.raises(GrammarRefused):
        compiled(compiler, spec)
    started = time.monotonic()
    for _ in range(100):
        assert compiler.compile(spec).done()
    assert time.monotonic() - started < 0.5


def test_equal_specs_share_one_grammar_and_the_cache_forgets_the_oldest() -> None:
    compiler = GrammarCompiler(VOCABULARY, BOTH, cache_bytes=1)
    try:
        first = compiler.compile(schema({"type": "null"}))
        assert compiler.compile(schema({"type": "null"})) is first
        first.result(SECONDS)
        compiler.compile(schema({"type": "boolean"})).result(SECONDS)
        assert compiler.compile(schema({"type": "null"})) is not first
    finally:
        compiler.close()


def test_each_backend_alone_refuses_what_it_cannot_do() -> None:
    only_xgrammar = GrammarCompiler(VOCABULARY, (BackendName.XGRAMMAR,))
    only_llguidance = GrammarCompiler(VOCABULARY, (BackendName.LLGUIDANCE,))
    try:
        with pytest.raises(GrammarRefused, match="xgrammar does not keep to"):
            compiled(only_xgrammar, schema({"type": "integer", "multipleOf": 5}))
        with pytest.raises(GrammarRefused, match="needs the xgrammar backend"):
            compiled(only_llguidance, GrammarSpec(GrammarKind.STRUCTURAL_TAG, '{"format": {"type": "any_text"}}'))
        assert takes(compiled(only_llguidance, schema(PERSON)), '{"name": "a", "age": 1}')
    finally:
        only_xgrammar.close()
        only_llguidance.close()


@pytest.mark.parametrize(
    "spec",
    [GrammarSpec(GrammarKind.EBNF, 'root ::= "" | "ab" root'), schema({"type": "integer", "multipleOf": 7})],
    ids=BOTH,
)
def test_nothing_follows_a_stop_token(compiler: GrammarCompiler, spec: GrammarSpec) -> None:
    """With ignore_eos a request goes on behind one that was sampled."""
    grammars = RequestGrammars(compiler, VOCABULARY)
    grammars.add(EngineRequest(request_id="a", prompt_token_ids=(1,), params=SamplingParams(grammar=spec)), spec)
    compiled(compiler, spec)
    assert [each.error for each in grammars.take_compiled()] == [None]
    written = () if spec.kind is GrammarKind.EBNF else (ord("7") + 1,)
    assert grammars.accept(TokenDelta("a", (*written, EOS), None, None, 0)) == GrammarEnd(FinishReason.STOP)
    matcher = compiled(compiler, spec).matcher()
    assert all(matcher.accept(token) for token in (*written, EOS))
    assert allowed(matcher) <= {EOS}
    assert not matcher.accept(ord("a") + 1)


def test_a_grammar_may_begin_behind_free_text(compiler: GrammarCompiler) -> None:
    choice = compiled(compiler, GrammarSpec(GrammarKind.CHOICE, '["yes"]'))
    matcher = AfterTextMatcher(choice.matcher(), VOCABULARY, opening="<t>", end="</t>")
    assert {ord("y") + 1, ord("<") + 1} <= allowed(matcher)
    assert ord("n") + 1 not in allowed(matcher)
    for byte in b"<t>no</t":
        assert matcher.accept(byte + 1)
        assert EOS not in allowed(matcher)
    assert matcher.accept(ord(">") + 1)
    assert ord("n") + 1 not in allowed(matcher)
    for byte in b"yes":
        assert matcher.accept(byte + 1)
    assert matcher.is_complete


def test_without_its_opening_there_is_no_free_text(compiler: GrammarCompiler) -> None:
    choice = compiled(compiler, GrammarSpec(GrammarKind.CHOICE, '["yes"]'))
    matcher = AfterTextMatcher(choice.matcher(), VOCABULARY, opening="<t>", end="</t>")
    for byte in b"yes":
        assert matcher.accept(byte + 1)
    assert matcher.is_complete


SLOW = GrammarSpec(GrammarKind.REGEX, "(a{1000}){1000}")


@pytest.mark.parametrize(
    "spec",
    [
        SLOW,
        schema(
            {"type": "object", "properties": {f"p{i}": {"pattern": f"^(a|b){{1,{i + 999}}}$"} for i in range(3000)}}
        ),
    ],
)
def test_what_takes_too_long_is_refused_in_time_and_tried_again_later(
    compiler: GrammarCompiler, spec: GrammarSpec
) -> None:
    compiled(compiler, schema({"type": "null"}))  # the sandbox has started
    started = time.monotonic()
    future = compiler.compile(spec)
    with pytest.raises(GrammarTimedOut, match="make it simpler"):
        future.result(SECONDS)
    assert time.monotonic() - started < 2
    assert compiler.compile(spec) is future


def test_a_sandbox_that_was_killed_is_replaced_before_the_next_spec() -> None:
    compiler = GrammarCompiler(VOCABULARY, (BackendName.LLGUIDANCE,))
    try:
        compiled(compiler, schema({"type": "null"}))
        before = set(sandboxes())
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert takes(compiled(compiler, schema({"type": "boolean"})), "true")
        assert set(sandboxes()) - before
    finally:
        compiler.close()


def test_a_spec_that_a_dying_sandbox_was_given_is_built_by_the_next() -> None:
    """It was killed and is not gone yet: a spec goes to its socket as if nothing had happened."""
    compiler = GrammarCompiler(VOCABULARY, (BackendName.LLGUIDANCE,))
    try:
        compiled(compiler, schema({"type": "null"}))
        before = set(sandboxes())
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        future = compiler.compile(schema({"type": "boolean"}))
        time.sleep(0.2)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert takes(future.result(SECONDS), "true")
        assert before.isdisjoint(sandboxes())
    finally:
        compiler.close()


def test_a_spec_whose_sandbox_was_killed_with_all_its_children_is_tried_again() -> None:
    compiler = GrammarCompiler(VOCABULARY, (BackendName.LLGUIDANCE,))
    try:
        compiled(compiler, schema({"type": "null"}))
        before = set(sandboxes())
        future = compiler.compile(SLOW)
        for pid in before | {busy_child(before)}:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(GrammarTimedOut):
            future.result(SECONDS)
        assert before.isdisjoint(sandboxes())
    finally:
        compiler.close()


def test_a_spec_whose_own_process_was_killed_is_refused() -> None:
    """As the kernel does where memory runs out."""
    compiler = GrammarCompiler(VOCABULARY, (BackendName.LLGUIDANCE,))
    try:
        compiled(compiler, schema({"type": "null"}))
        before = set(sandboxes())
        future = compiler.compile(SLOW)
        os.kill(busy_child(before), signal.SIGKILL)
        with pytest.raises(GrammarRefused, match="too much memory"):
            future.result(SECONDS)
        assert set(sandboxes()) == before
    finally:
        compiler.close()


def busy_child(sandboxes: set[int]) -> int:
    """The process id of one that has been compiling for some ticks of its processor."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for child in (child for pid in sandboxes for child in children_of(pid)):
            with suppress(OSError):
                if int(Path(f"/proc/{child}/stat").read_text().split()[13]) > 5:
                    return child
        time.sleep(0.005)
    raise TimeoutError("no grammar was compiled")


def sandboxes() -> Iterator[int]:
    """Process ids of this process's children that compile grammars."""
    for pid in children_of(os.getpid()):
        if b"grammar.sandbox" in Path(f"/proc/{pid}/cmdline").read_bytes():
            yield pid


def children_of(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, children.read_text().split())


def test_before_xgrammar_is_loaded_llguidance_does_the_work() -> None:
    compiler = GrammarCompiler(VOCABULARY, BOTH)
    try:
        assert isinstance(compiled(compiler, schema(PERSON)), LlguidanceGrammar)
        assert takes(compiled(compiler, schema(PERSON)), '{"name": "a", "age": 1}')
        deadline = time.monotonic() + SECONDS
        while isinstance(compiled(compiler, schema(PERSON)), LlguidanceGrammar):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert takes(compiled(compiler, schema(PERSON)), '{"name": "a", "age": 1}')
    finally:
        compiler.close()


def test_what_is_built_before_xgrammar_is_loaded_and_never_asked_for_again_is_forgotten() -> None:
    compiler = GrammarCompiler(VOCABULARY, BOTH)
    try:
        specs = [GrammarSpec(GrammarKind.REGEX, f"a{{{i}}}") for i in range(MAX_PROVISIONAL + 20)]
        for spec in specs:
            compiler.compile(spec)
        assert list(compiler._provisional) == specs[20:]
    finally:
        compiler.close()


def test_boolean_schemas_are_any_value_and_none(compiler: GrammarCompiler) -> None:
    assert takes(compiled(compiler, schema(True)), "[1]")
    with pytest.raises(GrammarRefused, match="no value"):
        compiled(compiler, schema(False))


def test_an_alternative_may_begin_with_a_special_token(compiler: GrammarCompiler) -> None:
    special = VOCABULARY.size - 1
    forms = [Alternative((TokenPart(special), TextPart("ab"))), Alternative((TextPart("x"),))]
    matcher = compiled(compiler, alternatives_spec(forms)).matcher()
    assert allowed(matcher) == {special, ord("x") + 1}
    assert matcher.accept(special)
    assert ord("a") + 1 in allowed(matcher)
