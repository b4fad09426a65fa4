"""Random schemas on the real model at temperature 1: every output that is complete validates. The script
`scripts/structured_output.py` does the same with two hundred."""

import json

import pytest
from jsonschema import Draft202012Validator

from descant_bench.random_schemas import random_schemas
from descant_cli.up.options import find_model
from descant_engine import LLM, SamplingParams
from descant_engine.grammar.spec import GrammarKind, GrammarSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NUM_SCHEMAS = 24
QUESTION = "Answer with an example, in JSON."


def test_every_completed_output_validates() -> None:
    schemas = random_schemas(NUM_SCHEMAS)
    params = [
        SamplingParams(max_tokens=56, seed=seed, grammar=GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema)))
        for seed, schema in enumerate(schemas)
    ]
    llm = LLM(find_model(None)[0], device="cpu", max_model_len=512, max_num_seqs=NUM_SCHEMAS)
    try:
        outputs = llm.chat([[{"role": "user", "content": QUESTION}]] * NUM_SCHEMAS, params, use_tqdm=False)
    finally:
        llm.close()
    assert {output.finish_reason for output in outputs} <= {"stop", "length"}
    complete = [pair for pair in zip(schemas, outputs, strict=True) if pair[1].finish_reason == "stop"]
    assert len(complete) > NUM_SCHEMAS // 2
    for schema, output in complete:
        validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        validator.validate(json.loads(output.text))
