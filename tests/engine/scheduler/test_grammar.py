"""Masks of many rows at once: made by several threads, they are what one would make."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from descant_engine.grammar.bitmask import GrammarBitmask
from descant_engine.grammar.compiler import GrammarCompiler
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
