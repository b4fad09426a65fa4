"""Narrowed schemas: short, and of nothing that the schema itself does not allow."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from bounded_schemas import bounded
from jsonschema import Draft202012Validator
from real_schemas import TOOLS

from descant_bench.random_schemas import random_schemas
from descant_engine.grammar.build import BackendName
from descant_engine.grammar.compiler import GrammarCompiler
from descant_engine.grammar.matcher import num_words
from descant_engine.grammar.spec import GrammarKind, GrammarSpec
from descant_engine.grammar.vocabulary import Vocabulary

EOS = 0
VOCABULARY = Vocabulary.of_model((b"", *(bytes([i]) for i in range(256))), 257, (EOS,))
PRINTED = frozenset({EOS, *(byte + 1 for byte in b'{}[]",:.@/-+#_ abcdefghijklmnopqrstuvwxyzABCZTP0123456789')})
CHARACTERS = 4000


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(VOCABULARY, (BackendName.LLGUIDANCE,))
    yield compiler
    compiler.close()


@pytest.mark.parametrize("schema", [*TOOLS.values(), *random_schemas(20)])
def test_any_output_of_a_narrowed_schema_ends_and_fits_the_schema(compiler: GrammarCompiler, schema: Any) -> None:
    spec = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(bounded(schema)))
    text = random_output(compiler, spec)
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(json.loads(text))


def random_output(compiler: GrammarCompiler, spec: GrammarSpec) -> str:
    matcher = compiler.compile(spec).result(60).matcher()
    random = np.random.default_rng(0)
    row = np.zeros(num_words(VOCABULARY.size), dtype=np.int32)
    text = bytearray()
    for _ in range(CHARACTERS):
        matcher.fill_bitmask(row)
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
        token_id = int(random.choice([token for token in allowed if token in PRINTED] or allowed))
        if token_id == EOS:
            return text.decode()
        assert matcher.accept(token_id)
        text.append(token_id - 1)
    raise AssertionError(f"it goes on and on: {text.decode()[:400]}")


def test_what_is_fixed_stays_so() -> None:
    assert bounded({"const": "a" * 40, "type": "string"}) == {"const": "a" * 40, "type": "string"}
    assert bounded({"enum": ["a" * 40], "type": "string"}) == {"enum": ["a" * 40], "type": "string"}
