"""Masks of many rows at once: made by several threads, they are what one would make. What nobody waits for any more is
not compiled."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from descant_engine.grammar.bitmask import GrammarBitmask
from descant_engine.grammar.compiler import COMPILING_THREADS, GrammarCompiler
from descant_engine.grammar.spec import BackendName, GrammarKind, GrammarSpec
from descant_engine.grammar.vocabulary import Vocabulary
from descant_engine.request import EngineRequest, TokenDelta
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.grammar import RequestGrammars
from descant_engine.scheduler.plan import ScheduledRequest

VOCABULARY = Vocabulary.of_model((b"", *(bytes([i]) for i in range(256))), 257, (0,))
SPECS = [
    GrammarSpec(GrammarKind.REGEX, "[0-9]{3}-[a-f]{30}"),
    GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps({"type": "array", "items": {"type": "string", "maxLength": 9}})),
    GrammarSpec(GrammarKind.CHOICE, '["red", "rose"]'),
]
NUM_ROWS = 33

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(VOCABULARY, (BackendName.LLGUIDANCE,))
    yield compiler
    compiler.close()


def test_threads_make_the_same_masks(compiler: GrammarCompiler) -> None:
    alone, shared = (RequestGrammars(compiler, VOCABULARY, num_mask_threads=number) for number in (1, 4))
    for grammars in (alone, shared):
        for index in range(NUM_ROWS):
            params = SamplingParams(grammar=(spec := SPECS[index % len(SPECS)]))
            grammars.add(EngineRequest(request_id=str(index), prompt_token_ids=(1,), params=params), spec)
        while grammars.num_waiting:
            grammars.wait(1.0)
            assert all(error is None for _, error in grammars.take_compiled())
    random = np.random.default_rng(0)
    scheduled = tuple(ScheduledRequest(str(index), 0, 1, (), samples=True) for index in range(NUM_ROWS))
    for _ in range(12):
        expected, mask = alone.bitmask(scheduled), shared.bitmask(scheduled)
        assert expected is not None
        assert mask is not None
        assert mask.sample_indices == expected.sample_indices
        np.testing.assert_array_equal(mask.words, expected.words)
        follow(random, expected, (alone, shared))


def follow(random: np.random.Generator, mask: GrammarBitmask, both: tuple[RequestGrammars, ...]) -> None:
    for index, row in zip(mask.sample_indices, mask.words, strict=True):
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        token_id = int(random.choice(allowed[allowed < VOCABULARY.size]))
        ends = [grammars.accept(TokenDelta(str(index), (token_id,), None, None, 0)) for grammars in both]
        assert ends[0] == ends[1]


@contextmanager
def all_threads_busy(compiler: GrammarCompiler) -> Iterator[None]:
    end = threading.Event()
    try:
        for _ in range(COMPILING_THREADS):
            compiler._threads.submit(end.wait, 30)
        yield
    finally:
        end.set()


def regex(text: str, after: str = "") -> GrammarSpec:
    return GrammarSpec(GrammarKind.REGEX, text, after=after)


def add(grammars: RequestGrammars, request_id: str, spec: GrammarSpec) -> None:
    grammars.add(EngineRequest(request_id=request_id, prompt_token_ids=(1,), params=SamplingParams(grammar=spec)), spec)


def compiled_ids(grammars: RequestGrammars) -> list[str]:
    ids = []
    while grammars.num_waiting:
        grammars.wait(1.0)
        for request, error in grammars.take_compiled():
            assert error is None
            ids.append(request.request_id)
    return ids


def test_what_was_cancelled_is_not_compiled(compiler: GrammarCompiler) -> None:
    grammars = RequestGrammars(compiler, VOCABULARY)
    with all_threads_busy(compiler):
        futures = [compiler.compile(regex(f"cancelled {index}")) for index in range(3)]
        for index, after in enumerate(("", "", "</think>")):
            add(grammars, str(index), regex(f"cancelled {index}", after))
            grammars.forget(str(index))
    assert all(future.cancelled() for future in futures)
    add(grammars, "again", regex("cancelled 0"))
    assert compiled_ids(grammars) == ["again"]


def test_what_somebody_else_waits_for_is_compiled(compiler: GrammarCompiler) -> None:
    grammars = RequestGrammars(compiler, VOCABULARY)
    with all_threads_busy(compiler):
        add(grammars, "leaves", regex("shared"))
        add(grammars, "stays", regex("shared", after="</think>"))
        grammars.forget("leaves")
    assert compiled_ids(grammars) == ["stays"]


def test_what_is_compiled_already_is_kept(compiler: GrammarCompiler) -> None:
    grammars = RequestGrammars(compiler, VOCABULARY)
    future = compiler.compile(regex("kept"))
    future.result(30)
    add(grammars, "leaves", regex("kept"))
    grammars.forget("leaves")
    assert compiler.compile(regex("kept")) is future
