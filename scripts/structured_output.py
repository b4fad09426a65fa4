"""Structured output on a real model: does every completed output validate, and what does it cost?

python scripts/structured_output.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf --schemas 200
python scripts/structured_output.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf --cost
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence

from jsonschema import Draft202012Validator

from descant_bench.random_schemas import TOOLS, random_schemas
from descant_engine import LLM, SamplingParams
from descant_engine.grammar.spec import GrammarKind, GrammarSpec
from descant_engine.text.chat_template import ChatMessage

CONVERSATION: Sequence[ChatMessage] = [{"role": "user", "content": "Answer with an example, in JSON."}]
LONG = {
    "type": "object",
    "properties": {"items": {"type": "array", "minItems": 60, "items": TOOLS[2]["$defs"]["condition"]}},
    "required": ["items"],
}
"""Of which no output of the measured length gets to the end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--cost", action="store_true", help="tokens/s with and without a grammar, in turns")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--load-format", default="auto", choices=["auto", "dummy"])
    arguments = parser.parse_args()
    llm = LLM(
        arguments.model,
        device=arguments.device,
        load_format=arguments.load_format,
        max_model_len=2048,
        max_num_seqs=128,
    )
    if arguments.cost:
        measure_cost(llm, arguments.concurrency, arguments.runs)
    else:
        validate(llm, arguments.schemas, arguments.max_tokens)
    llm.close()


def grammar(schema: object) -> GrammarSpec:
    return GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema))


def validate(llm: LLM, count: int, max_tokens: int) -> None:
    schemas = random_schemas(count)
    params = [
        SamplingParams(temperature=1.0, max_tokens=max_tokens, seed=i, grammar=grammar(s))
        for i, s in enumerate(schemas)
    ]
    started = time.monotonic()
    outputs = llm.chat([CONVERSATION] * count, params)
    results = Counter(
        result_of(schema, output.text) if output.finish_reason == "stop" else str(output.finish_reason)
        for schema, output in zip(schemas, outputs, strict=True)
    )
    for schema, output in zip(schemas, outputs, strict=True):
        if output.finish_reason not in ("stop", "length") or (
            output.finish_reason == "stop" and result_of(schema, output.text) != "valid"
        ):
            print(json.dumps(schema), repr(output.text), output.finish_reason, output.error)
    print(f"{count} schemas in {time.monotonic() - started:.0f} s: {dict(results)}")


def result_of(schema: dict[str, object], text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return "no JSON"
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return "valid" if validator.is_valid(value) else "invalid"


def measure_cost(llm: LLM, concurrency: int, runs: int) -> None:
    """Pairs of runs, since the machine's speed drifts; the first pair compiles the grammar and is not counted."""
    chats = [CONVERSATION] * concurrency
    params = {
        "free": SamplingParams(max_tokens=64, ignore_eos=True),
        "schema": SamplingParams(max_tokens=64, grammar=grammar(LONG)),
    }
    ratios = []
    for run in range(runs + 1):
        speeds = {name: speed(llm, chats, each) for name, each in params.items()}
        if run:
            ratios.append(speeds["schema"] / speeds["free"])
            print({name: round(value, 1) for name, value in speeds.items()}, f"ratio {ratios[-1]:.3f}")
    print(f"concurrency {concurrency}: median ratio {statistics.median(ratios):.3f}")


def speed(llm: LLM, chats: Sequence[Sequence[ChatMessage]], params: SamplingParams) -> float:
    """Tokens a second."""
    started = time.monotonic()
    outputs = llm.chat(chats, params, use_tqdm=False)
    return sum(output.usage.completion_tokens for output in outputs) / (time.monotonic() - started)


if __name__ == "__main__":
    main()
