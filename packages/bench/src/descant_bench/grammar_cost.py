"""What grammars cost: tokens/s of one batch without any, with a schema, and with a schema whose strings are bounded.

    python -m descant_bench.grammar_cost --model FOLDER --batch-size 64 --output-len 256

One engine in this process. The cases take turns, forth and back, so that a machine that slows down does so for all of
them; a first round compiles grammars and kernels and is not counted. Prompts are random token ids and outputs go to
their last token, whatever the model is: random weights (--load-format dummy) do. A model without a tokenizer gets a
vocabulary of its size that is made up. Needs xgrammar, llguidance, or both.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from string import ascii_lowercase
from typing import Any

from descant_bench.engine_options import add_engine_options, engine_config
from descant_bench.environment import describe_environment
from descant_bench.recorded import random_requests
from descant_bench.report_file import add_report_options, write_report
from descant_bench.watched_methods import HOST_PARTS, Method, MethodClock
from descant_engine.engine import Engine
from descant_engine.grammar.spec import GrammarKind, GrammarSpec
from descant_engine.request import EngineRequest, FinishReason
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.grammar import RequestGrammars
from descant_engine.steady_heap import settle_heap
from descant_engine.text.tokenizer import Tokenizer, TokenizerError

PARTS = {
    **HOST_PARTS,
    "masks": Method(RequestGrammars, "bitmask"),
    "follow tokens": Method(RequestGrammars, "accept"),
}
"""Where the host's time of a step goes. On CUDA a grammar costs a step time only where the host no longer waits."""
FREE = "no grammar"
RANDOM_WORD_LETTERS = (2, 3, 4, 5, 6, 7, 8)


def _list_of(item: dict[str, Any]) -> dict[str, Any]:
    """Of which no output of a measured length gets to the end."""
    item |= {"type": "object", "required": list(item["properties"])}
    return {"type": "array", "minItems": 1000, "items": item}


SCHEMAS = {
    "schema": _list_of(
        {
            "properties": {
                "name": {"type": "string"},
                "kind": {"enum": ["order", "customer", "stock"]},
                "count": {"type": "integer"},
                "is_open": {"type": "boolean"},
            }
        }
    ),
    "bounded strings": _list_of(
        {
            "properties": {
                "column": {"type": "string", "pattern": "^[a-z_]{1,16}$"},
                "operator": {"enum": ["=", "<", ">", "like"]},
                "value": {"anyOf": [{"type": "number"}, {"type": "string", "maxLength": 12}, {"type": "boolean"}]},
            }
        }
    ),
}
"""The first is xgrammar's, where it is there; the second llguidance's."""


@dataclass(frozen=True, slots=True)
class Run:
    tok_s: float
    cpu_ms_per_step: float
    """Processor time of all threads of this process."""
    ms_per_step: float
    part_ms: dict[str, float]
    """Of a step, by the names of PARTS."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one case, over the counted rounds."""

    tok_s: float
    cpu_ms_per_step: float
    ms_per_step: float
    ratio: float
    """The median of each round's tokens/s by the same round's without grammar: 1 is free."""
    ratios: tuple[float, ...]
    cpu_ratio: float
    """The same of processor time a step, which says more on a machine that does other things: 1 is free."""
    part_ms: dict[str, float]
    """Wall time of the host, by the names of PARTS."""


class Batch:
    """One engine and one batch of prompts, run again and again."""

    def __init__(self, engine: Engine, args: argparse.Namespace) -> None:
        self._engine = engine
        self._size, self._max_tokens, self._temperature = args.batch_size, args.output_len, args.temperature
        vocab_size = engine.config.shape.vocab_size
        self._prompts = random_requests(args.batch_size, args.input_len, args.output_len, vocab_size=vocab_size)
        self._numbers = count()

    def run(self, schema: dict[str, Any] | None) -> Run:
        """Raises SystemExit if a request ends otherwise than at its last token."""
        grammar = None if schema is None else GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema))
        self._submit(SamplingParams(temperature=self._temperature, max_tokens=self._max_tokens, ignore_eos=True,
                                    grammar=grammar))  # fmt: skip
        started, cpu_started, num_steps, clock = time.perf_counter(), time.process_time(), 0, MethodClock(PARTS)
        with clock.running():
            while self._engine.has_work:
                self._check(self._engine.step())
                num_steps += 1
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        num_tokens = self._size * self._max_tokens
        part_ms = {name: 1e3 * spent / num_steps for name, spent in clock.seconds.items()}
        return Run(num_tokens / seconds, 1e3 * cpu_seconds / num_steps, 1e3 * seconds / num_steps, part_ms)

    def _submit(self, params: SamplingParams) -> None:
        run = str(next(self._numbers))
        for index, prompt in enumerate(self._prompts):
            self._engine.submit(
                EngineRequest(
                    request_id=f"{run}-{index}",
                    prompt_token_ids=prompt.prompt_token_ids,
                    params=params,
                    tenant_salt=run,
                )
            )

    def _check(self, deltas: Sequence[Any]) -> None:
        for delta in deltas:
            if delta.finish_reason not in (None, FinishReason.LENGTH):
                raise SystemExit(f"{delta.request_id} ended by {delta.finish_reason}: {delta.error}")
        for refusal in self._engine.take_refusals():
            raise SystemExit(f"{refusal.request_id} was refused: {refusal.error}")


def measure(batch: Batch, rounds: int) -> dict[str, Cost]:
    cases: dict[str, dict[str, Any] | None] = {FREE: None, **SCHEMAS}
    runs: dict[str, list[Run]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name in cases if number % 2 else reversed(cases):
            run = batch.run(cases[name])
            print(f"round {number} {name:16} {run.tok_s:10.1f} tok/s {run.ms_per_step:8.2f} ms a step"
                  f" {run.cpu_ms_per_step:8.2f} ms CPU", flush=True)  # fmt: skip
            if number:
                runs[name].append(run)
    return {name: _cost(each, runs[FREE]) for name, each in runs.items()}


def _cost(runs: Sequence[Run], free: Sequence[Run]) -> Cost:
    ratios = tuple(round(run.tok_s / other.tok_s, 4) for run, other in zip(runs, free, strict=True))
    cpu_ratios = (run.cpu_ms_per_step / other.cpu_ms_per_step for run, other in zip(runs, free, strict=True))
    return Cost(
        tok_s=round(statistics.median(run.tok_s for run in runs), 1),
        cpu_ms_per_step=round(statistics.median(run.cpu_ms_per_step for run in runs), 2),
        ms_per_step=round(statistics.median(run.ms_per_step for run in runs), 2),
        ratio=round(statistics.median(ratios), 4),
        ratios=ratios,
        cpu_ratio=round(statistics.median(cpu_ratios), 4),
        part_ms={name: round(statistics.median(run.part_ms.get(name, 0.0) for run in runs), 3) for name in PARTS},
    )


def visible_tokens(model: str, vocab_size: int) -> tuple[bytes, ...]:
    """The model's own or, without a tokenizer, made-up ones: every byte, then words."""
    try:
        return Tokenizer.load(model).visible_tokens
    except (TokenizerError, OSError):
        random = Random(0)
        words = dict.fromkeys(bytes([byte]) for byte in range(256))
        while len(words) < vocab_size - 256:
            letters = random.choices(ascii_lowercase, k=random.choice(RANDOM_WORD_LETTERS))
            words[(random.choice(("", " ")) + "".join(letters)).encode()] = None
        return tuple(words)


def main() -> None:
    args = _parser().parse_args()
    config = engine_config(args, with_adapters=False)
    engine = Engine(config)
    engine.use_vocabulary(visible_tokens(args.model, config.shape.vocab_size))
    settle_heap()  # as a serving process does
    costs = measure(Batch(engine, args), args.rounds)
    engine.close()
    print(f"\n{'case':16} {'tok/s':>10} {'ratio':>8} {'ms/step':>9} {'CPU ms':>9} {'ratio':>8}")
    for name, cost in costs.items():
        print(f"{name:16} {cost.tok_s:10.1f} {cost.ratio:8.3f} {cost.ms_per_step:9.2f} {cost.cpu_ms_per_step:9.2f}"
              f" {cost.cpu_ratio:8.3f}")  # fmt: skip
    for name, cost in costs.items():
        print(f"{name}: " + ", ".join(f"{part} {ms:.2f}" for part, ms in cost.part_ms.items() if ms), "ms a step")
    if args.output is not None:
        report = {
            "environment": describe_environment(config.device, args.commit),
            "batch_size": args.batch_size,
            "cases": costs,
        }
        write_report(args.output, report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: without a grammar, one argmax a step")
    parser.add_argument("--rounds", type=int, default=3, help="after the warm-up")
    add_report_options(parser)
    add_engine_options(parser)
    return parser


if __name__ == "__main__":
    main()
