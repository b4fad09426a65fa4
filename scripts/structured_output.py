"""Structured output on a real model at temperature 1: does every completed output validate?

python scripts/structured_output.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf --suite path/to/JSON-Schema-Test-Suite

Schemas of tools, of the models of OpenAI's client and, at random, in their manner; with --suite, also every schema of
the standard's own tests (the required part of draft 2020-12), of which those that the engine refuses are counted with
their reasons. A schema whose output is cut by --max-tokens, as a model that small goes on for ever where it may, is
asked for once more, narrowed to short values; the output is held against the schema as it was. What grammars cost is
another measurement: `descant bench grammar-cost`.
"""

import argparse
import asyncio
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bounded_schemas import bounded
from jsonschema import Draft202012Validator
from real_schemas import TOOLS, client_models

from descant_bench.environment import describe_environment
from descant_bench.random_schemas import random_schemas
from descant_engine import AsyncEngine, EngineConfig, SamplingParams
from descant_engine.frontend import Chat
from descant_engine.grammar.spec import GrammarKind, GrammarRefused, GrammarSpec
from descant_engine.request import FinishReason
from descant_engine.serving.request_stream import RequestFailed, RequestStream

ASK = "Answer with a short example of this JSON schema: "
PROMPT_TOKENS = 1024
CONCURRENCY = 16


class Case(NamedTuple):
    source: str
    """tools, client, random or suite."""
    name: str
    schema: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    case: Case
    kind: str
    """valid, invalid, unchecked, cut, refused"""
    num_tokens: int
    is_second: bool = False
    """The first output was cut; this one's schema was narrowed to short values."""
    detail: str = ""
    """Why it was refused; what was invalid, or cut."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--client-models", type=int, default=60, help="of OpenAI's client")
    parser.add_argument("--random", type=int, default=60)
    parser.add_argument("--suite", type=Path, metavar="FOLDER", help="a checkout of JSON-Schema-Test-Suite")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--output", type=Path, metavar="OUT.json")
    args = parser.parse_args()
    cases = [Case("tools", name, schema) for name, schema in TOOLS.items()]
    cases += (Case("client", name, schema) for name, schema in client_models(args.client_models))
    cases += (Case("random", str(number), schema) for number, schema in enumerate(random_schemas(args.random)))
    if args.suite is not None:
        cases += suite_cases(args.suite)
    started = time.monotonic()
    outcomes = asyncio.run(answer_all(args.model, cases, args.temperature, args.max_tokens))
    seconds = time.monotonic() - started
    for name, counts in summary(outcomes).items():
        print(f"{name:8} {counts}")
    if args.output is not None:
        write_report(args.output, args, outcomes, seconds)


def suite_cases(folder: Path) -> Iterator[Case]:
    """Boolean schemas are left out: there is nothing to keep to."""
    for path in sorted((folder / "tests" / "draft2020-12").glob("*.json")):
        for group in json.loads(path.read_text()):
            if isinstance(group["schema"], dict):
                yield Case("suite", f"{path.stem}: {group['description']}", group["schema"])


async def answer_all(model: str, cases: Sequence[Case], temperature: float, max_tokens: int) -> list[Outcome]:
    engine = await AsyncEngine.start(EngineConfig(model=model, max_model_len=max_tokens + PROMPT_TOKENS))
    places = asyncio.Semaphore(CONCURRENCY)

    async def answer(seed: int, case: Case, schema: Any) -> Outcome:
        grammar = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema))
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed, grammar=grammar)
        return await outcome_of(case, await engine.submit(prompt_for(schema), params))

    async def answer_or_again(seed: int, case: Case) -> Outcome:
        async with places:
            outcome = await answer(seed, case, case.schema)
            if outcome.kind == "cut":
                outcome = replace(await answer(seed, case, bounded(case.schema)), is_second=True)
        again = "again" if outcome.is_second else ""
        print(f"{seed:4} {case.source:6} {outcome.kind:9} {outcome.num_tokens:5} {again:5} {case.name}", flush=True)
        return outcome

    try:
        return await asyncio.gather(*(answer_or_again(seed, case) for seed, case in enumerate(cases)))
    finally:
        await engine.close()


def prompt_for(schema: Any) -> Chat:
    """The model is told the schema, as applications do."""
    return Chat([{"role": "user", "content": (ASK + json.dumps(schema))[:PROMPT_TOKENS]}])


async def outcome_of(case: Case, stream: RequestStream) -> Outcome:
    text = ""
    try:
        async for output in stream:
            text += output.text
    except (GrammarRefused, RequestFailed) as error:
        return Outcome(case, "refused", 0, detail=str(error))
    num_tokens = output.usage.completion_tokens
    if output.finish_reason is not FinishReason.STOP:
        return Outcome(case, "cut", num_tokens, detail=text)
    try:
        fault = fault_of(case.schema, text)
    except re.error as error:  # a pattern that Python's own engine does not know: nothing here can check it
        return Outcome(case, "unchecked", num_tokens, detail=f"{text!r}: {error}")
    if fault is None:
        return Outcome(case, "valid", num_tokens)
    return Outcome(case, "invalid", num_tokens, detail=f"{text!r}: {fault}; {json.dumps(case.schema)}")


def fault_of(schema: Any, text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError as error:
        return str(error)
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return next((error.message for error in validator.iter_errors(value)), None)


def summary(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for each in outcomes:
        counts[each.case.source][each.kind] += 1
        counts["asked again"][each.kind] += each.is_second
        counts["all"][each.kind] += 1
    return {name: dict(+count) for name, count in counts.items() if +count}


def write_report(path: Path, args: argparse.Namespace, outcomes: Sequence[Outcome], seconds: float) -> None:
    valid = sorted(each.num_tokens for each in outcomes if each.kind == "valid")
    report = {
        "environment": asdict(describe_environment("cpu")),
        "model": Path(args.model).name,
        "temperature": args.temperature,
        "max_tokens": args.max_tokens,
        "seconds": round(seconds, 1),
        "outputs": summary(outcomes),
        "tokens_of_valid_outputs": {"median": valid[len(valid) // 2], "longest": valid[-1]},
        "refusals": dict(Counter(each.detail for each in outcomes if each.kind == "refused").most_common()),
        "invalid": _details(outcomes, "invalid"),
        "unchecked": _details(outcomes, "unchecked"),
        "cut": _details(outcomes, "cut"),
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


def _details(outcomes: Sequence[Outcome], kind: str) -> list[str]:
    return [f"{each.case.source}, {each.case.name}: {each.detail[:400]}" for each in outcomes if each.kind == kind]


if __name__ == "__main__":
    main()
