"""What speculation gives and costs: two engines of one model in this process, one of which drafts, prompt by prompt in
turns, so that both meet the same noise.

    python -m descant_bench.speculation --output docs/results/speculative.json

Texts that repeat themselves, ordinary chats, drawn ones, eight at once, with an adapter and without. The two engines'
outputs have to be the same, token by token: otherwise there is no figure.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from descant_bench.cpu_speed import QUESTIONS, smollm2_path
from descant_bench.environment import describe_environment
from descant_bench.repeating_texts import REPEATING_TEXTS
from descant_bench.report_file import add_report_options, write_report
from descant_engine import LLM, SamplingParams
from descant_engine.frontend import Chat, Prompt
from descant_engine.scheduler.stats import DraftStats
from descant_engine.speculation.config import SpeculativeConfig, SpeculativeMethod


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    prompts: tuple[Prompt, ...]
    params: SamplingParams
    adapter: str | None = None
    at_once: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """Of all prompts of a case, without drafts and with them."""

    num_tokens: int
    plain_s: float
    drafting_s: float
    plain_cpu_s: float
    drafting_cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    tokens: int
    """Of one round."""
    plain_tok_s: float
    drafting_tok_s: float
    ratio: float
    """The median of the rounds' tokens/s with drafts by those without, in the same round."""
    cpu_ratio: float
    """The same of processor time, of which other work on the machine takes none."""
    ratios: tuple[float, ...]
    cpu_ratios: tuple[float, ...]
    drafted: int
    accepted: int


def cases(num_tokens: int, adapter: str | None) -> list[Case]:
    """Chats end where the model ends them: driven further, small models repeat themselves."""
    chats: tuple[Prompt, ...] = tuple(Chat([{"role": "user", "content": question}]) for question in QUESTIONS)
    greedy = SamplingParams(temperature=0.0, max_tokens=num_tokens)
    drawn = SamplingParams(temperature=1.0, seed=7, max_tokens=num_tokens)
    found = [
        Case("repeating", REPEATING_TEXTS, greedy),
        Case("chat", chats, greedy),
        Case("chat, temperature 1", chats, drawn),
        Case("repeating, 4 at once", REPEATING_TEXTS, greedy, at_once=4),
        Case("chat, 8 at once", chats, greedy, at_once=8),
    ]
    if adapter is not None:
        found += [
            Case("repeating, adapter", REPEATING_TEXTS, greedy, adapter),
            Case("chat, adapter", chats, greedy, adapter),
        ]
    return found


class Pair:
    """The engine that drafts, and the one that does not."""

    def __init__(self, make: Callable[[SpeculativeConfig | None], LLM], config: SpeculativeConfig) -> None:
        self._plain, self._drafting = make(None), make(config)
        self._num_turns = 0

    def run(self, case: Case) -> Run:
        """Raises SystemExit if the two disagree on a token."""
        parts = [self._turn(case, prompts) for prompts in _slices(case.prompts, case.at_once)]
        return Run(
            sum(part.num_tokens for part in parts),
            sum(part.plain_s for part in parts),
            sum(part.drafting_s for part in parts),
            sum(part.plain_cpu_s for part in parts),
            sum(part.drafting_cpu_s for part in parts),
        )

    def drafts(self) -> DraftStats:
        """Counted since start."""
        return self._drafting.stats().drafts

    def _turn(self, case: Case, prompts: Sequence[Prompt]) -> Run:
        self._num_turns += 1
        if self._num_turns % 2:
            plain, drafting = _generate(self._plain, case, prompts), _generate(self._drafting, case, prompts)
        else:
            drafting, plain = _generate(self._drafting, case, prompts), _generate(self._plain, case, prompts)
        if plain.token_ids != drafting.token_ids:
            raise SystemExit(f"{case.name}: outputs differ with drafts and without, for {prompts!r:.300}")
        return Run(
            sum(map(len, plain.token_ids)), plain.seconds, drafting.seconds, plain.cpu_seconds, drafting.cpu_seconds
        )


@dataclass(frozen=True, slots=True)
class _Generated:
    token_ids: tuple[tuple[int, ...], ...]
    seconds: float
    cpu_seconds: float
    """Of all threads of this process."""


def _generate(llm: LLM, case: Case, prompts: Sequence[Prompt]) -> _Generated:
    began, cpu_began = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, case.params, adapter=case.adapter, use_tqdm=False)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    return _Generated(tuple(tuple(output.token_ids) for output in outputs), seconds, cpu_seconds)


def _slices(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    return (prompts[first : first + size] for first in range(0, len(prompts), size))


def measure(pair: Pair, wanted: Sequence[Case], rounds: int) -> dict[str, Gain]:
    """The first round warms up, and is where speculation learns what steps cost; it is not counted."""
    runs: dict[str, list[Run]] = {case.name: [] for case in wanted}
    counts: dict[str, tuple[int, int]] = {}
    for number in range(rounds + 1):
        for case in wanted:
            before = pair.drafts()
            run = pair.run(case)
            after = pair.drafts()
            print(f"round {number} {case.name:22} {run.plain_s / run.drafting_s:6.3f} in time"
                  f" {run.plain_cpu_s / run.drafting_cpu_s:6.3f} in CPU time", flush=True)  # fmt: skip
            if number:
                runs[case.name].append(run)
                counts[case.name] = (
                    after.num_draft_tokens - before.num_draft_tokens,
                    after.num_accepted_tokens - before.num_accepted_tokens,
                )
    return {name: _gain(each, *counts[name]) for name, each in runs.items()}


def _gain(runs: Sequence[Run], drafted: int, accepted: int) -> Gain:
    ratios = tuple(round(run.plain_s / run.drafting_s, 3) for run in runs)
    cpu_ratios = tuple(round(run.plain_cpu_s / run.drafting_cpu_s, 3) for run in runs)
    return Gain(
        tokens=runs[-1].num_tokens,
        plain_tok_s=round(statistics.median(run.num_tokens / run.plain_s for run in runs), 1),
        drafting_tok_s=round(statistics.median(run.num_tokens / run.drafting_s for run in runs), 1),
        ratio=round(statistics.median(ratios), 3),
        cpu_ratio=round(statistics.median(cpu_ratios), 3),
        ratios=ratios,
        cpu_ratios=cpu_ratios,
        drafted=drafted,
        accepted=accepted,
    )


def main() -> None:
    args = _parser().parse_args()
    method = SpeculativeMethod.NGRAM if args.draft_model is None else SpeculativeMethod.DRAFT_MODEL
    config = SpeculativeConfig(
        method=method, model=args.draft_model, num_speculative_tokens=args.num_speculative_tokens
    )
    wanted = cases(args.num_tokens, None if args.adapter is None else args.adapter.name)
    pair = Pair(partial(_engine, args), config)
    gains = measure(pair, [case for case in wanted if not args.case or case.name in args.case], args.rounds)
    _print(gains)
    if args.output is not None:
        environment = describe_environment(args.device, args.commit)
        write_report(args.output, {"environment": environment, "speculation": config, "cases": gains})


def _engine(args: argparse.Namespace, config: SpeculativeConfig | None) -> LLM:
    llm = LLM(
        args.model or str(smollm2_path()),
        dtype=args.dtype,
        device=args.device,
        max_model_len=2048,
        num_blocks=args.num_blocks,
        enable_prefix_caching=False,
        enable_lora=args.adapter is not None,
        speculative_config=config,
    )
    if args.adapter is not None:
        llm.load_adapter(args.adapter.name, args.adapter)
    return llm


def _print(gains: Mapping[str, Gain]) -> None:
    print(f"\n{'case':22} {'tok/s':>8} {'drafting':>8} {'ratio':>7} {'of CPU':>7} {'drafted':>8} {'right':>6}")
    for name, gain in gains.items():
        print(f"{name:22} {gain.plain_tok_s:8.1f} {gain.drafting_tok_s:8.1f} {gain.ratio:7.3f} {gain.cpu_ratio:7.3f}"
              f" {gain.drafted:8} {gain.accepted:6}")  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="SmolLM2-135M-Instruct from its wheel by default")
    parser.add_argument("--adapter", type=Path, default=Path("demo/adapters/polite"), metavar="FOLDER")
    parser.add_argument("--draft-model", metavar="MODEL", help="drafts instead of n-grams")
    parser.add_argument("--num-speculative-tokens", type=int, metavar="N")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--num-blocks", type=int, default=1024, help="of the pool, 16 tokens each")
    parser.add_argument("--num-tokens", type=int, default=96, help="most tokens of an output")
    parser.add_argument("--rounds", type=int, default=3, help="after the warm-up")
    parser.add_argument("--case", action="append", help="only this one; may be given again")
    add_report_options(parser)
    return parser


if __name__ == "__main__":
    main()
