"""Which library compiles a spec, and what comes of it.

llguidance comes first even where xgrammar will do the work: it is quick, it refuses what it does not know by name
(xgrammar passes over some keywords), and what it accepts is there to fall back on if xgrammar takes too long.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from descant_engine.grammar.alternatives import checked_alternatives
from descant_engine.grammar.light_xgrammar import load_xgrammar
from descant_engine.grammar.matcher import CompiledGrammar, Matcher, num_words
from descant_engine.grammar.schema import check_has_finite_output, closed, read_schema
from descant_engine.grammar.spec import BackendName, GrammarKind, GrammarRefused, GrammarSpec
from descant_engine.grammar.structural_tag import read_structural_tag, schemas_of
from descant_engine.grammar.vocabulary import Vocabulary
from descant_engine.grammar.xgrammar_scope import honours_regex, honours_schema

if TYPE_CHECKING:
    from descant_engine.grammar.llguidance_backend import LlguidanceBackend
    from descant_engine.grammar.xgrammar_backend import XgrammarBackend


WALK_TOKENS = 64
SLOW_SECONDS = 0.03
"""Of a single step, when others want one of their own every few milliseconds."""
VAST_SECONDS = 0.2
"""What occupies llguidance for so long is not worth starting with in xgrammar, which does far more in advance."""


class Build(NamedTuple):
    """A compiled grammar on its way between processes."""

    backend: BackendName
    data: str


class Backends:
    """The libraries that are allowed and installed, each made when it is first needed."""

    def __init__(self, vocabulary: Vocabulary, allowed: tuple[BackendName, ...]) -> None:
        """`allowed`: in case of doubt the first."""
        self.vocabulary = vocabulary
        self.names = tuple(name for name in allowed if find_spec(name) is not None)

    @cached_property
    def xgrammar(self) -> "XgrammarBackend":
        load_xgrammar()
        from descant_engine.grammar.xgrammar_backend import XgrammarBackend

        return XgrammarBackend(self.vocabulary)

    @cached_property
    def llguidance(self) -> "LlguidanceBackend":
        from descant_engine.grammar.llguidance_backend import LlguidanceBackend

        return LlguidanceBackend(self.vocabulary)

    def warm_up(self) -> None:
        """Makes them now: that takes some tenths of a second."""
        while self.warm_up_next():
            pass

    def warm_up_next(self) -> bool:
        """Makes one of them; False if all are there."""
        missing = next((name for name in self.names if name.value not in vars(self)), None)
        if missing is not None:
            getattr(self, missing.value)
        return missing is not None

    def load(self, build: Build) -> CompiledGrammar:
        """Raises GrammarRefused if this process has other limits than the one that built it."""
        if build.backend is BackendName.XGRAMMAR:
            return self.xgrammar.load(build.data)
        return self.llguidance.load(build.data)


def builds(spec: GrammarSpec, backends: Backends) -> Iterator[Build]:
    """Ever better builds of the spec, at least one; the last is the one to use. May never end, or end the process: take
    what there is then.

    Raises:
        GrammarRefused: nothing satisfies the spec, or nothing here can guarantee it.
    """
    if not backends.names:
        raise GrammarRefused("this engine has neither of the libraries xgrammar and llguidance installed")
    started = time.process_time()
    spec = _prepared(spec)
    _check_embedded(spec, backends)
    wants_xgrammar = _suits_xgrammar(spec, backends)
    is_built = False
    if BackendName.LLGUIDANCE in backends.names and not needs_xgrammar(spec):
        build = Build(BackendName.LLGUIDANCE, backends.llguidance.compile(spec))
        if is_built := _is_quick(backends.llguidance.load(build.data).matcher(), backends.vocabulary):
            yield build
    elif needs_xgrammar(spec) and not wants_xgrammar:
        raise GrammarRefused(f"a {spec.kind.value} of this form needs the xgrammar backend")
    elif not wants_xgrammar:
        raise GrammarRefused("it uses what xgrammar does not keep to exactly, and llguidance is not here to do it")
    is_vast = is_built and time.process_time() - started > VAST_SECONDS
    if wants_xgrammar and not is_vast:
        build = Build(BackendName.XGRAMMAR, backends.xgrammar.compile(spec))
        if _is_quick(backends.xgrammar.load(build.data).matcher(), backends.vocabulary):
            is_built = True
            yield build
    if not is_built:
        raise GrammarRefused("following it takes too long; make it simpler")


def _check_embedded(spec: GrammarSpec, backends: Backends) -> None:
    """The schemas of a structural tag have to be such that xgrammar keeps to them."""
    if spec.kind is not GrammarKind.STRUCTURAL_TAG:
        return
    for schema in schemas_of(json.loads(spec.text)):
        check_has_finite_output(schema)
        if BackendName.LLGUIDANCE in backends.names:
            backends.llguidance.compile(GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema)))
        if not honours_schema(schema):
            raise GrammarRefused(f"a structural tag cannot keep to this schema in full: {json.dumps(schema)[:200]}")


def _is_quick(matcher: Matcher, vocabulary: Vocabulary) -> bool:
    """Follows the grammar at random for a while: one on which single steps take long never gets to the engine.

    Raises:
        GrammarRefused: there is not even a first token.
    """
    random = np.random.default_rng(0)
    row = np.zeros(num_words(vocabulary.size), dtype=np.int32)
    for step in range(WALK_TOKENS):
        started = time.thread_time()
        matcher.fill_bitmask(row)
        if step and time.thread_time() - started > SLOW_SECONDS:  # the first mask is made once, when it is loaded
            return False
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        if len(allowed) == 0:
            if step == 0:
                raise GrammarRefused("no output satisfies it, or following it exceeds all limits")
            return True
        token_id = int(random.choice(allowed))
        if token_id in vocabulary.stop_token_ids or not matcher.accept(token_id):
            return True
        if time.thread_time() - started > SLOW_SECONDS:
            return False
    return True


def _prepared(spec: GrammarSpec) -> GrammarSpec:
    match spec.kind:
        case GrammarKind.JSON_SCHEMA:
            schema = read_schema(spec.text)
            check_has_finite_output(schema)
            return replace(spec, text=json.dumps(closed(schema)))
        case GrammarKind.REGEX:
            return replace(spec, text=_unanchored(spec.text))
        case GrammarKind.STRUCTURAL_TAG:
            return replace(spec, text=json.dumps(read_structural_tag(spec.text)))
        case GrammarKind.ALTERNATIVES:
            return replace(spec, text=checked_alternatives(spec.text))
        case _:
            return spec


def _unanchored(pattern: str) -> str:
    """The whole output matches anyway; alternatives keep their own anchors."""
    if "|" in pattern:
        return pattern
    pattern = pattern.removeprefix("^")
    return pattern[:-1] if pattern.endswith("$") and not pattern.endswith("\\$") else pattern


def needs_xgrammar(spec: GrammarSpec) -> bool:
    """Whether no other library reads what it is written in."""
    return spec.kind is GrammarKind.STRUCTURAL_TAG or (spec.kind is GrammarKind.EBNF and "::=" in spec.text)


def _suits_xgrammar(spec: GrammarSpec, backends: Backends) -> bool:
    if BackendName.XGRAMMAR not in backends.names:
        return False
    if backends.names[0] is not BackendName.XGRAMMAR and not needs_xgrammar(spec):
        return False
    match spec.kind:
        case GrammarKind.JSON_SCHEMA:
            return honours_schema(json.loads(spec.text))
        case GrammarKind.REGEX:
            return honours_regex(spec.text)
        case GrammarKind.EBNF:
            return "::=" in spec.text
        case GrammarKind.ALTERNATIVES:
            return False
        case _:
            return True
