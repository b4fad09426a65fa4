"""The real scheduler with a device that only takes time: what it decides, in simulated seconds, deterministically.

python -m descant_bench.scheduler_simulation        prints the figures of docs/results/scheduler.md
"""

import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path

from descant_engine.adapter import AdapterManifest, ModuleLora, TargetModule
from descant_engine.config import EngineConfig, ModelShape, ResolvedConfig, RopeScaling
from descant_engine.request import EngineRequest
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.plan import AdapterEvent, AdapterMove, AdapterMoveKind, StepPlan, StepResult
from descant_engine.scheduler.scheduler import Scheduler

LLAMA_8B = ModelShape(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_q_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    max_position=131072,
    rope=RopeScaling(kind="default", theta=5e5),
    tie_word_embeddings=False,
)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Milliseconds of an 8B model on an H200, roughly."""

    step: float = 4.5
    decode_token: float = 0.02
    prompt_token: float = 0.03
    read_adapter: float = 60.0
    copy_adapter: float = 2.0

    def step_ms(self, plan: StepPlan) -> float:
        num_prompt_tokens = sum(s.num_scheduled_tokens for s in plan.scheduled if s.num_scheduled_tokens > 1)
        num_decodes = sum(s.num_scheduled_tokens == 1 for s in plan.scheduled)
        return self.step + self.decode_token * num_decodes + self.prompt_token * num_prompt_tokens

    def move_ms(self, move: AdapterMove) -> float:
        return self.read_adapter if move.kind is AdapterMoveKind.LOAD_HOST else self.copy_adapter


@dataclass(frozen=True, slots=True)
class Arrival:
    at_ms: float
    adapter: str | None = None
    tenant: str = ""
    num_prompt_tokens: int = 512
    num_output_tokens: int = 128
    priority: int = 0


@dataclass(slots=True)
class Served:
    arrival: Arrival
    first_token_ms: float = 0.0
    finished_ms: float = 0.0

    @property
    def ttft_ms(self) -> float:
        return self.first_token_ms - self.arrival.at_ms


@dataclass(slots=True)
class _Device:
    """Time, and the moves of adapters that are under way."""

    cost: CostModel
    now_ms: float = 0.0
    moves: list[tuple[float, int, AdapterMove]] = field(default_factory=list)
    num_moves: int = 0

    def run(self, plan: StepPlan) -> StepResult:
        for move in plan.adapter_moves:
            if move.kind in (AdapterMoveKind.LOAD_HOST, AdapterMoveKind.LOAD_DEVICE):
                self.num_moves += 1
                heappush(self.moves, (self.now_ms + self.cost.move_ms(move), self.num_moves, move))
        self.now_ms += self.cost.step_ms(plan) if plan.scheduled else 0.5
        events = []
        while self.moves and self.moves[0][0] <= self.now_ms:
            move = heappop(self.moves)[2]
            events.append(AdapterEvent(move.kind, move.manifest.digest, content_digest=move.manifest.digest))
        sampled = tuple((s.request_id, 7) for s in plan.scheduled if s.samples)
        return StepResult(plan.step_id, sampled, tuple(events))


def make_scheduler(
    num_adapters: int,
    *,
    num_blocks: int = 60_000,
    num_slots: int = 4096,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 8192,
    lora_rank: int = 16,
    enable_prefix_caching: bool = True,
) -> tuple[Scheduler, list[str]]:
    """A scheduler for Llama-3.1-8B, and the names of its adapters on all seven linears."""
    user = EngineConfig(
        model="simulated",
        enable_lora=num_adapters > 0,
        adapter_host_bytes=1 << 40,
        max_num_queued_requests=1 << 30,
        enable_prefix_caching=enable_prefix_caching,
    )
    config = ResolvedConfig(
        user=user,
        shape=LLAMA_8B,
        dtype="bfloat16",
        device="cuda",
        max_model_len=16_384,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        eos_token_ids=(2,),
    )
    scheduler = Scheduler(config, num_blocks, num_slots)
    modules = tuple(
        ModuleLora(layer, module, lora_rank, 1.0, "a", "b")
        for layer in range(LLAMA_8B.num_layers)
        for module in TargetModule
    )
    names = [f"adapter-{index:04d}" for index in range(num_adapters)]
    for name in names:
        scheduler.register_adapter(AdapterManifest(name, Path(name), modules))
    return scheduler, names


def simulate(scheduler: Scheduler, arrivals: Iterable[Arrival], cost: CostModel | None = None) -> list[Served]:
    """Serves all arrivals, one step at a time, results one step late as on a GPU; in the order of the arrivals."""
    device = _Device(cost or CostModel())
    served = [Served(arrival) for arrival in sorted(arrivals, key=lambda arrival: arrival.at_ms)]
    num_added = 0
    pending: list[tuple[StepPlan, StepResult, float]] = []
    while num_added < len(served) or scheduler.has_unfinished_requests or pending:
        if not scheduler.has_unfinished_requests and not pending and num_added < len(served):
            device.now_ms = max(device.now_ms, served[num_added].arrival.at_ms)
        while num_added < len(served) and served[num_added].arrival.at_ms <= device.now_ms:
            scheduler.add(_request(num_added, served[num_added].arrival))
            num_added += 1
        if (plan := scheduler.schedule()).is_empty and pending:
            _apply(scheduler, served, *pending.pop(0))
            continue
        result = device.run(plan)
        pending.append((plan, result, device.now_ms))
        if len(pending) > 1:
            _apply(scheduler, served, *pending.pop(0))
    return served


def _apply(scheduler: Scheduler, served: Sequence[Served], plan: StepPlan, result: StepResult, at_ms: float) -> None:
    for delta in scheduler.update(plan, result):
        one = served[int(delta.request_id)]
        one.first_token_ms = one.first_token_ms or at_ms
        if delta.finish_reason is not None:
            one.finished_ms = at_ms


def _request(index: int, arrival: Arrival) -> EngineRequest:
    # Prompts that share nothing: prefix hits would flatter the figures.
    prompt = (index % 65_536, index >> 16, *([3] * (arrival.num_prompt_tokens - 2)))
    return EngineRequest(
        request_id=str(index),
        prompt_token_ids=prompt,
        params=SamplingParams(temperature=0.0, max_tokens=arrival.num_output_tokens, ignore_eos=True),
        adapter_digest=arrival.adapter,
        tenant=arrival.tenant,
        priority=arrival.priority,
    )


def poisson(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Times in ms."""
    generator = random.Random(seed)
    times = []
    now = generator.expovariate(rate_per_s)
    while now < seconds:
        times.append(1000 * now)
        now += generator.expovariate(rate_per_s)
    return times


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def flood_figures(flood_rate: float, seconds: float = 30) -> dict[str, float]:
    """Ten adapters, all loaded: nine send five requests a second together, the tenth sends `flood_rate`."""
    scheduler, names = make_scheduler(10)
    arrivals = [Arrival(0, name, num_prompt_tokens=16, num_output_tokens=1) for name in names]
    arrivals += [Arrival(500 + t, names[1 + i % 9]) for i, t in enumerate(poisson(5, seconds, seed=1))]
    if flood_rate > 0:
        arrivals += [Arrival(500 + t, names[0]) for t in poisson(flood_rate, seconds, seed=2)]
    served = simulate(scheduler, arrivals)
    quiet = [one.ttft_ms for one in served if one.arrival.adapter != names[0] and one.arrival.at_ms > 2000]
    return {
        "flood_rate": flood_rate,
        "quiet_p50_ms": round(percentile(quiet, 0.5), 1),
        "quiet_p99_ms": round(percentile(quiet, 0.99), 1),
        "all_done_ms": round(max(one.finished_ms for one in served)),
    }


def host_figures(num_adapters: int, num_steps: int = 200) -> dict[str, float]:
    """CPU time of a decode step's schedule and update: 256 running, 1,000 queued, spread over the adapters."""
    scheduler, names = make_scheduler(num_adapters, num_blocks=120_000)
    for index in range(1256):
        adapter = names[7 * index % num_adapters] if names else None
        scheduler.add(_request(index, Arrival(0, adapter, num_prompt_tokens=64, num_output_tokens=2000)))
    device = _Device(CostModel())
    spent = []
    for _ in range(600 + num_steps):
        start = time.process_time()
        plan = scheduler.schedule()
        planned = time.process_time()
        result = device.run(plan)
        update = time.process_time()
        scheduler.update(plan, result)
        spent.append(planned - start + time.process_time() - update)
    start = time.process_time()
    scheduler.stats()
    stats_us = round(1e6 * (time.process_time() - start))
    return {"adapters": num_adapters, "step_us": round(1e6 * percentile(spent[600:], 0.5)), "stats_us": stats_us}


def main() -> None:
    for flood_rate in (0, 45, 90):
        print(json.dumps(flood_figures(flood_rate)))
    for num_adapters in (0, 64, 1000):
        print(json.dumps(host_figures(num_adapters)))


if __name__ == "__main__":
    main()
