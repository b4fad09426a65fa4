"""Time per step by part, beside the floor that bytes and operations set.

    python -m descant_bench.profile_steps --model FOLDER --batch 64 --prompt-tokens 128 [--num-adapters 64]
    python -m descant_bench.profile_steps --model FOLDER --phase prefill --batch 16 --prompt-tokens 8192

Runs the same steps twice: once with nothing but a clock around the host's methods (the step's true time), once under
torch's profiler (which part of it is whose). On CUDA a kernel's part follows from its name; kernels that no rule knows
are listed by name. Kernels of several streams overlap: their times add up to more than the device was busy, and the
idle share is of the union. A part's floor is the larger of its bytes over the copy ceiling and its operations over the
product ceiling (see `step_work` for what counts).
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from descant_bench.ceilings import add_ceiling_options, ceilings
from descant_bench.engine_options import add_engine_options, engine_config
from descant_bench.environment import describe_environment
from descant_bench.random_adapters import modules_named, write_adapters
from descant_bench.recorded import RecordedRequest, random_requests
from descant_bench.replay import Replay
from descant_bench.report_file import add_report_options, write_report
from descant_bench.step_report import StepReport, Workload, print_report, step_report
from descant_bench.step_trace import quiet_device, trace_steps
from descant_bench.step_work import ModelWork, sum_of_steps
from descant_bench.watched_methods import MethodClock, recorded_plans
from descant_engine.config import ResolvedConfig

WARM_STEPS = 2
"""Of prefill."""
WARM_TOKENS = 8
"""Tokens of each request before the measured steps: graphs are captured, kernels compiled."""


class StepSource:
    """Brings the engine to where every step is like the next, and takes steps from there."""

    def __init__(self, replay: Replay, workload: Workload) -> None:
        self._replay = replay
        self._engine = replay.engine
        self._workload = workload
        self._seed = 0

    def begin(self) -> None:
        """Raises SystemExit if the requests do not fit beside each other: then there is no steady state."""
        if self._workload.phase == "prefill":
            self.top_up(WARM_STEPS)
            self._drain()
        else:
            self._reach_decode()

    def step(self) -> None:
        if self._workload.phase == "prefill" and not self._engine.has_work:
            self._submit(self._workload.batch, 1)
        self._engine.step()

    def top_up(self, num_steps: int) -> None:
        """For prefill: enough prompts for so many steps."""
        if self._workload.phase == "prefill":
            self._drain()
            tokens = num_steps * self._replay.config.max_num_batched_tokens
            self._submit(max(1, -(-tokens // self._workload.prompt_tokens)), 1)

    def _reach_decode(self) -> None:
        missing = dict.fromkeys(self._submit(self._workload.batch, self._room()), WARM_TOKENS)
        while missing:
            for delta in self._engine.step():
                if delta.error is not None or delta.finish_reason is not None:
                    raise SystemExit(
                        f"request {delta.request_id} ended ({delta.error or delta.finish_reason}) before all of the "
                        "batch was decoding; lower --batch or --prompt-tokens, or raise --max-num-seqs"
                    )
                if delta.request_id in missing:
                    missing[delta.request_id] -= len(delta.token_ids)
                    if missing[delta.request_id] <= 0:
                        del missing[delta.request_id]

    def _room(self) -> int:
        room = self._replay.config.max_model_len - self._workload.prompt_tokens
        if room < 2 * self._workload.steps + 2 * WARM_TOKENS:
            raise SystemExit(
                f"--prompt-tokens {self._workload.prompt_tokens} leaves {room} tokens of "
                f"--max-model-len {self._replay.config.max_model_len}, too few for two runs of {self._workload.steps}"
            )
        return room

    def _submit(self, count: int, max_tokens: int) -> list[str]:
        self._seed += 1
        requests = workload_requests(self._workload, count, max_tokens, self._replay.config, self._seed)
        self._replay.register(requests)
        return self._replay.submit(requests)

    def _drain(self) -> None:
        while self._engine.has_work:
            self._engine.step()


def workload_requests(
    workload: Workload, count: int, max_tokens: int, config: ResolvedConfig, seed: int
) -> list[RecordedRequest]:
    adapters = [index % workload.num_adapters if workload.num_adapters else None for index in range(count)]
    return random_requests(
        count,
        workload.prompt_tokens,
        max_tokens,
        vocab_size=config.shape.vocab_size,
        adapters=adapters,
        seed=seed,
    )


def measure_steps(args: argparse.Namespace, config: ResolvedConfig, adapters: Path | None) -> StepReport:
    limits = ceilings(args, config.device, config.dtype)  # before the engine takes the memory
    workload = Workload(args.phase, args.batch, args.prompt_tokens, args.num_adapters, args.steps)
    replay = Replay(config, adapters)
    source = StepSource(replay, workload)
    source.begin()
    clock = MethodClock()

    def run_steps() -> None:
        for _ in range(workload.steps):
            source.step()

    source.top_up(workload.steps)
    with quiet_device(config.device):
        start = time.perf_counter()
        with clock.running():
            run_steps()
    seconds = time.perf_counter() - start
    source.top_up(workload.steps)
    with quiet_device(config.device), recorded_plans() as plans:
        trace = trace_steps(run_steps, config.device)
    model_work = ModelWork(config)
    work = sum_of_steps(model_work.of_step(plan.scheduled, replay.manifests) for plan in plans)
    replay.engine.close()
    return step_report(
        workload=workload,
        environment=describe_environment(config.device, args.commit),
        limits=limits,
        step_us=1e6 * seconds / workload.steps,
        host_seconds=clock.seconds,
        trace=trace,
        work=work,
    )


def main() -> None:
    args = _parser().parse_args()
    config = engine_config(args, with_adapters=args.num_adapters > 0)
    with ExitStack() as scratch:
        adapters = args.adapters
        if args.num_adapters and adapters is None:
            adapters = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="descant-adapters-")))
            write_adapters(
                adapters,
                config.shape,
                args.num_adapters,
                lora_rank=args.lora_rank,
                modules=modules_named(args.modules),
                device=config.device,
            )
        report = measure_steps(args, config, adapters)
    print_report(report, sys.stdout)
    if args.output is not None:
        write_report(args.output, report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=["decode", "prefill"], default="decode")
    parser.add_argument("--batch", type=int, default=64, help="requests that decode, or prompts of a round of prefill")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--num-adapters", type=int, default=0, help="dealt out to the requests in turn")
    parser.add_argument("--adapters", type=Path, metavar="FOLDER", help="with 0000, 0001, ...; default: random ones")
    parser.add_argument("--lora-rank", type=int, default=16, help="of random adapters")
    parser.add_argument("--modules", default="all", help="of random adapters: all, attention, or q_proj,v_proj")
    add_report_options(parser)
    add_engine_options(parser)
    add_ceiling_options(parser)
    return parser


if __name__ == "__main__":
    main()
