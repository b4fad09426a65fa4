"""The real scheduler with a device that only takes time: what it decides, in simulated milliseconds, deterministically.

The loop is `Engine.step`'s: a step is planned and launched while the one before runs, and results come one late. Unlike
there, moves of adapters are over when a step is, and nobody drafts.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

from descant_engine.adapters.manifest import AdapterManifest, ModuleLora, TargetModule
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
IDLE_STEP_MS = 0.5
WAKE_MS = 1.0


@dataclass(frozen=True, slots=True)
class CostModel:
    """Milliseconds of an 8B model on an H200, roughly."""

    step: float = 4.5
    request: float = 0.02
    """Each in the step, for its one token."""
    prompt_token: float = 0.03
    """Each further one."""
    mixed_step: float = 0.0
    """Added where there are such tokens."""
    host: float = 0.0
    """To plan and launch a step: the device waits for it only when it has nothing else to do."""
    mixed_host: float = 0.0
    read_adapter: float = 60.0
    copy_adapter: float = 2.0

    def step_ms(self, plan: StepPlan) -> float:
        num_requests = len(plan.scheduled)
        num_more = plan.num_tokens - num_requests
        return self.step + self.request * num_requests + self.prompt_token * num_more + self.mixed_step * (num_more > 0)

    def host_ms(self, plan: StepPlan) -> float:
        return self.mixed_host if plan.num_tokens > len(plan.scheduled) else self.host

    def move_ms(self, move: AdapterMove) -> float:
        return self.read_adapter if move.kind is AdapterMoveKind.LOAD_HOST else self.copy_adapter


H200_LORA = CostModel(step=4.9, request=0.04, prompt_token=0.02, mixed_step=0.5, host=0.6, mixed_host=4.0)
"""With adapters of rank 16 on all linears, so that it gives what docs/results measured: 4.7, 7.5 and 15.2 ms a step at
batch 1, 64 and 256 (h200-vllm.md), and first tokens of 18.3 ms (p99 20.6) alone, 24.3 (31) beside a flood that might
add half of one to a step (h200-adapters.md). `mixed_host` is more than a graph's launch: it is all that a newcomer may
come too late by, for a step that has not begun."""


@dataclass(frozen=True, slots=True)
class Arrival:
    at_ms: float
    adapter: str | None = None
    tenant: str = ""
    num_prompt_tokens: int = 512
    num_output_tokens: int = 128
    priority: int = 0

    def request(self, index: int) -> EngineRequest:
        """Prompts share nothing: prefix hits would flatter the figures."""
        prompt = (index % 65_536, index >> 16, *([3] * (self.num_prompt_tokens - 2)))
        return EngineRequest(
            request_id=str(index),
            prompt_token_ids=prompt,
            params=SamplingParams(temperature=0.0, max_tokens=self.num_output_tokens, ignore_eos=True),
            adapter_digest=self.adapter,
            tenant=self.tenant,
            priority=self.priority,
        )


@dataclass(slots=True)
class Served:
    arrival: Arrival
    first_token_ms: float = 0.0
    finished_ms: float = 0.0

    @property
    def ttft_ms(self) -> float:
        return self.first_token_ms - self.arrival.at_ms


@dataclass(slots=True)
class Clock:
    """The host's."""

    now_ms: float = 0.0

    def seconds(self) -> float:
        return self.now_ms / 1000

    def wait_until(self, at_ms: float) -> None:
        self.now_ms = max(self.now_ms, at_ms)


@dataclass(slots=True)
class Device:
    """Does steps one after the other; adapters move beside them."""

    cost: CostModel
    free_at_ms: float = 0.0
    moves: list[tuple[float, int, AdapterMove]] = field(default_factory=list)
    num_moves: int = 0

    def launch(self, plan: StepPlan, now_ms: float) -> "Launched":
        start_ms = max(now_ms, self.free_at_ms)
        for move in plan.adapter_moves:
            if move.kind in (AdapterMoveKind.LOAD_HOST, AdapterMoveKind.LOAD_DEVICE):
                self.num_moves += 1
                heappush(self.moves, (start_ms + self.cost.move_ms(move), self.num_moves, move))
        self.free_at_ms = start_ms + (self.cost.step_ms(plan) if plan.scheduled else IDLE_STEP_MS)
        events = []
        while self.moves and self.moves[0][0] <= self.free_at_ms:
            move = heappop(self.moves)[2]
            events.append(AdapterEvent(move.kind, move.manifest.digest, content_digest=move.manifest.digest))
        sampled = tuple((s.request_id, 7) for s in plan.scheduled if s.samples)
        return Launched(plan, StepResult(plan.step_id, sampled), tuple(events), self.free_at_ms)


class Launched(NamedTuple):
    plan: StepPlan
    result: StepResult
    events: tuple[AdapterEvent, ...]
    """Of moves that are over with the step: when they are told of must not depend on this machine's time."""
    ends_at_ms: float


class SimulatedEngine:
    """Llama-3.1-8B with `num_adapters` adapters on all seven linears, named `adapter-0000` and so on."""

    def __init__(
        self,
        num_adapters: int,
        *,
        cost: CostModel | None = None,
        num_blocks: int = 60_000,
        num_slots: int = 4096,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 8192,
        lora_rank: int = 16,
        enable_prefix_caching: bool = True,
    ) -> None:
        config = _config(num_adapters, max_num_seqs, max_num_batched_tokens, enable_prefix_caching)
        self.clock = Clock()
        self.device = Device(cost or CostModel())
        self.scheduler = Scheduler(config, num_blocks, num_slots, self.clock.seconds)
        self.adapters = [f"adapter-{index:04d}" for index in range(num_adapters)]
        self.plans: list[StepPlan] = []
        for manifest in _manifests(self.adapters, lora_rank):
            self.scheduler.register_adapter(manifest)
        self._launched: deque[Launched] = deque()
        self._served: list[Served] = []

    def serve(self, arrivals: Iterable[Arrival]) -> list[Served]:
        """Serves all arrivals; in their order."""
        self._served = [Served(arrival) for arrival in sorted(arrivals, key=lambda arrival: arrival.at_ms)]
        due = deque(enumerate(self._served))
        while due or self.scheduler.has_unfinished_requests or self._launched:
            if not self.scheduler.has_unfinished_requests and not self._launched:
                self.clock.wait_until(due[0][1].arrival.at_ms)
            self._wait_to_plan()
            while due and due[0][1].arrival.at_ms <= self.clock.now_ms:
                index, served = due.popleft()
                self.scheduler.add(served.arrival.request(index))
            self.step()
        return self._served

    def _wait_to_plan(self) -> None:
        """As `Engine.seconds_to_spare` says."""
        self.clock.wait_until(1000 * self.scheduler.busy_until - self.device.cost.mixed_host - WAKE_MS)

    def step(self) -> None:
        plan = self.scheduler.schedule()
        if not plan.is_empty or not self._launched:
            self.plans.append(plan)
            self.clock.now_ms += self.device.cost.host_ms(plan)
            self._launched.append(self.device.launch(plan, self.clock.now_ms))
        if len(self._launched) > 1 or not plan.scheduled:
            self._apply(self._launched.popleft())

    def _apply(self, step: Launched) -> None:
        self.clock.wait_until(step.ends_at_ms)
        deltas = self.scheduler.update(step.plan, step.result)
        for delta in [*deltas, *self.scheduler.finish_loads(step.events)]:
            one = self._served[int(delta.request_id)]
            one.first_token_ms = one.first_token_ms or step.ends_at_ms
            if delta.finish_reason is not None:
                one.finished_ms = step.ends_at_ms


def _config(
    num_adapters: int, max_num_seqs: int, max_num_batched_tokens: int, enable_prefix_caching: bool
) -> ResolvedConfig:
    user = EngineConfig(
        model="simulated",
        enable_lora=num_adapters > 0,
        adapter_host_bytes=1 << 40,
        max_num_queued_requests=1 << 30,
        enable_prefix_caching=enable_prefix_caching,
    )
    return ResolvedConfig(
        user=user,
        shape=LLAMA_8B,
        dtype="bfloat16",
        device="cuda",
        max_model_len=16_384,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        eos_token_ids=(2,),
    )


def _manifests(names: list[str], lora_rank: int) -> list[AdapterManifest]:
    modules = tuple(
        ModuleLora(layer, module, lora_rank, 1.0, "a", "b")
        for layer in range(LLAMA_8B.num_layers)
        for module in TargetModule
    )
    return [AdapterManifest(name, Path(name), modules) for name in names]
