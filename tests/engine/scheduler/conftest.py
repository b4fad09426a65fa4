"""An engine with everything but the model: the real scheduler, and a runner that checks what it is told to do.

The runner keeps a memory of what every token slot of the pool holds. A request's token may only be computed where its
whole past is found, byte for byte, through its block table; an adapter may only be used where all its blocks are
still its own. What comes out is a pure function of the tokens and the adapter, so every output can be foretold.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from descant_engine.adapters.manifest import AdapterManifest, ModuleLora, TargetModule
from descant_engine.cache.adapter_layout import plan_layout
from descant_engine.config import EngineConfig, ModelShape, ResolvedConfig, RopeScaling
from descant_engine.request import EngineRequest, FinishReason, TokenDelta
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.plan import (
    AdapterEvent,
    AdapterMove,
    AdapterMoveKind,
    AdmittedRequest,
    ScheduledRequest,
    StepPlan,
    StepResult,
)
from descant_engine.scheduler.scheduler import Scheduler
from descant_engine.speculation.speculation import Speculation

EOS = 2
VOCAB_SIZE = 23
SHAPE = ModelShape(
    architecture="LlamaForCausalLM",
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=32,
    num_layers=2,
    num_q_heads=2,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-6,
    max_position=256,
    rope=RopeScaling(kind="default", theta=1e4),
    tie_word_embeddings=True,
)


def make_config(
    *,
    block_size: int = 4,
    max_model_len: int = 64,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 16,
    **user: Any,
) -> ResolvedConfig:
    return ResolvedConfig(
        user=EngineConfig(model="some-model", block_size=block_size, **user),
        shape=SHAPE,
        dtype="float32",
        device="cpu",
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        eos_token_ids=(EOS,),
    )


def make_manifest(name: str, num_blocks: int = 1, *, block_size: int = 4) -> AdapterManifest:
    """An adapter of q_proj alone that takes exactly `num_blocks` blocks: a block has 32 * block_size * 8 / 2 rows."""
    rank_per_block = block_size * SHAPE.kv_elements_per_token // (2 * SHAPE.hidden_size)
    module = ModuleLora(0, TargetModule.Q_PROJ, rank_per_block * num_blocks, 1.0, "a", "b")
    manifest = AdapterManifest(name, Path(f"{name}.safetensors"), (module,))
    assert plan_layout(manifest, SHAPE, block_size * SHAPE.kv_elements_per_token).num_blocks == num_blocks
    return manifest


def next_token(tokens: Sequence[int], adapter: str | None, salt: str = "") -> int:
    """The "model": what follows `tokens`."""
    text = f"{adapter}|{salt}|{list(tokens)}".encode()
    return int.from_bytes(sha256(text).digest()[:4], "little") % VOCAB_SIZE


def foretell(spec: EngineRequest, max_model_len: int) -> tuple[list[int], FinishReason]:
    """What a request must come to, whatever happens around it."""
    tokens = list(spec.prompt_token_ids)
    room = max_model_len - len(tokens)
    limit = min(spec.params.max_tokens or room, room)
    stops = {*spec.params.stop_token_ids, *(() if spec.params.ignore_eos else (EOS,))}
    output: list[int] = []
    while True:
        output.append(next_token([*tokens, *output], spec.adapter_digest))
        if output[-1] in stops and len(output) >= spec.params.min_tokens:
            return output, FinishReason.STOP
        if len(output) == limit:
            return output, FinishReason.LENGTH


@dataclass
class Row:
    tokens: list[int]
    adapter_slot: int
    block_table: list[int] = field(default_factory=list)


class FakeRunner:
    """Does what plans say, at once and in order, as a stream would; `load_steps` and `failing` rule adapter loads."""

    def __init__(self, config: ResolvedConfig, num_blocks: int, num_slots: int) -> None:
        self.config = config
        self.num_slots = num_slots
        self.load_steps = 0
        self.failing: set[tuple[AdapterMoveKind, str]] = set()
        self.rows: dict[str, Row] = {}
        self.slots: dict[int, AdapterMove] = {}
        self.host: set[str] = set()
        self.memory: dict[int, dict[int, object]] = {block_id: {} for block_id in range(num_blocks)}
        self.under_way: list[tuple[int, AdapterMove]] = []
        self.num_tokens = 0

    def execute(self, plan: StepPlan) -> StepResult:
        for move in plan.adapter_moves:
            self._start(move)
        for request_id in plan.removed:
            del self.rows[request_id]
        for admitted in plan.admitted:
            self._admit(admitted)
        assert len(self.rows) <= self.config.max_num_seqs
        assert plan.num_tokens <= self.config.max_num_batched_tokens
        assert len({request.request_id for request in plan.scheduled}) == len(plan.scheduled)
        self.num_tokens += plan.num_tokens
        sampled = [(s.request_id, token) for s in plan.scheduled for token in self._run(s)]
        return StepResult(plan.step_id, tuple(sampled))

    def _admit(self, admitted: AdmittedRequest) -> None:
        assert admitted.request_id not in self.rows
        assert 0 < admitted.num_prompt_tokens <= len(admitted.token_ids)
        self.rows[admitted.request_id] = Row(list(admitted.token_ids), admitted.adapter_slot)

    def _run(self, scheduled: ScheduledRequest) -> list[int]:
        row = self.rows[scheduled.request_id]
        row.block_table += scheduled.new_block_ids
        adapter = self._adapter_of(row)
        first = scheduled.num_computed_tokens
        last = first + scheduled.num_scheduled_tokens
        assert scheduled.num_scheduled_tokens > scheduled.num_draft_tokens == len(scheduled.draft_token_ids)
        assert scheduled.samples == (last == len(row.tokens) + scheduled.num_draft_tokens)
        num_known = len(row.tokens)
        row.tokens += scheduled.draft_token_ids
        for position in range(last):
            cell, offset = self._cell(row, position)
            past = (adapter, tuple(row.tokens[: position + 1]))
            if position >= first:
                cell[offset] = past
            assert cell.get(offset) == past, f"{scheduled.request_id} lost token {position}"
        if not scheduled.samples:
            return []
        return self._sample(row, num_known, adapter)

    def _sample(self, row: Row, num_known: int, adapter: str | None) -> list[int]:
        """What follows the known tokens and each draft that is right."""
        drafts = [*row.tokens[num_known:], None]
        del row.tokens[num_known:]
        for draft in drafts:
            row.tokens.append(next_token(row.tokens, adapter))
            if row.tokens[-1] != draft:
                break
        return row.tokens[num_known:]

    def _cell(self, row: Row, position: int) -> tuple[dict[int, object], int]:
        block, offset = divmod(position, self.config.user.block_size)
        return self.memory[row.block_table[block]], offset

    def _adapter_of(self, row: Row) -> str | None:
        if row.adapter_slot == -1:
            return None
        move = self.slots[row.adapter_slot]
        self._check_in_place(move)
        return move.manifest.digest

    def _check_in_place(self, move: AdapterMove) -> None:
        for index, block_id in enumerate(move.block_ids):
            assert self.memory[block_id] == {-1: (move.manifest.digest, index)}, "an adapter's block was overwritten"

    def _start(self, move: AdapterMove) -> None:
        digest = move.manifest.digest
        match move.kind:
            case AdapterMoveKind.LOAD_HOST:
                assert digest not in self.host
                self.under_way.append((self.load_steps, move))
            case AdapterMoveKind.LOAD_DEVICE:
                assert digest in self.host
                assert 0 <= move.slot < self.num_slots
                assert move.slot not in self.slots
                for index, block_id in enumerate(move.block_ids):
                    self.memory[block_id] = {-1: (digest, index)}
                self.under_way.append((self.load_steps, move))
            case AdapterMoveKind.DROP_DEVICE:
                assert self.slots.pop(move.slot).block_ids == move.block_ids
                for block_id in move.block_ids:
                    self.memory[block_id] = {}
            case AdapterMoveKind.DROP_HOST:
                self.host.remove(digest)
                assert all(digest != moving.manifest.digest for _, moving in self.under_way)

    def finished_moves(self) -> tuple[AdapterEvent, ...]:
        due = [move for steps, move in self.under_way if steps == 0]
        self.under_way = [(steps - 1, move) for steps, move in self.under_way if steps > 0]
        return tuple(self._finish(move) for move in due)

    def _finish(self, move: AdapterMove) -> AdapterEvent:
        digest = move.manifest.digest
        if move.kind is AdapterMoveKind.LOAD_DEVICE:
            self._check_in_place(move)
        if (move.kind, digest) in self.failing:
            return AdapterEvent(move.kind, digest, error=f"{digest} is broken")
        if move.kind is AdapterMoveKind.LOAD_HOST:
            self.host.add(digest)
            return AdapterEvent(move.kind, digest, content_digest=f"content of {digest}")
        self.slots[move.slot] = move
        return AdapterEvent(move.kind, digest)


class FakeEngine:
    """The engine's loop; results are applied `steps_ahead` steps late."""

    def __init__(
        self,
        config: ResolvedConfig,
        num_blocks: int,
        num_slots: int = 0,
        *,
        steps_ahead: int = 0,
        speculation: Speculation | None = None,
    ) -> None:
        self.config = config
        self.scheduler = Scheduler(config, num_blocks, num_slots, lambda: 0.0, speculation=speculation)
        self.runner = FakeRunner(config, num_blocks, num_slots)
        self.steps_ahead = steps_ahead
        self.launched: deque[tuple[StepPlan, StepResult, tuple[AdapterEvent, ...]]] = deque()
        self.plans: list[StepPlan] = []
        self.outputs: dict[str, list[int]] = {}
        self.finished: dict[str, TokenDelta] = {}

    def add(
        self,
        request_id: str,
        prompt: Sequence[int],
        *,
        adapter: str | None = None,
        salt: str = "",
        tenant: str = "",
        priority: int = 0,
        **params: Any,
    ) -> EngineRequest:
        spec = EngineRequest(
            request_id=request_id,
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(**params),
            adapter_digest=adapter,
            tenant_salt=salt,
            tenant=tenant,
            priority=priority,
        )
        self.scheduler.add(spec)
        self.outputs[request_id] = []
        self.finished.pop(request_id, None)
        return spec

    def step(self) -> StepPlan:
        """Schedules and launches a step, and applies the one that is due."""
        while self.launched and self.scheduler.wants_results:
            self.apply_next()
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        self.plans.append(plan)
        if not plan.is_empty or not self.launched:
            self.launched.append((plan, self.runner.execute(plan), self.runner.finished_moves()))
        if len(self.launched) > self.steps_ahead or not plan.scheduled:
            self.apply_next()
        return plan

    def apply_next(self) -> None:
        plan, result, moves = self.launched.popleft()
        for delta in [*self.scheduler.update(plan, result), *self.scheduler.finish_loads(moves)]:
            assert delta.request_id not in self.finished, "a delta after the end"
            assert delta.token_ids or delta.finish_reason
            self.outputs[delta.request_id] += delta.token_ids
            if delta.finish_reason is not None:
                self.finished[delta.request_id] = delta
        self.scheduler.check_integrity()

    def run(self, max_steps: int = 2000) -> int:
        """Steps until everything is finished; returns how many."""
        for num_steps in range(max_steps):
            if not self.scheduler.has_unfinished_requests and not self.launched:
                return num_steps
            self.step()
        raise AssertionError(f"unfinished after {max_steps} steps: {self.scheduler.stats()}")

    def check_is_idle(self) -> None:
        """Nothing runs, and once the last load is over every block that is still held belongs to an adapter."""
        for _ in range(2 + max((steps for steps, _ in self.runner.under_way), default=0)):
            self.step()
        assert not self.runner.under_way
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert not self.runner.rows
        adapter_blocks = sum(len(move.block_ids) for move in self.runner.slots.values())
        assert round(stats.block_usage * len(self.runner.memory)) == adapter_blocks

    def foretold(self, spec: EngineRequest) -> list[int]:
        return foretell(spec, self.config.max_model_len)[0]

    def check_output(self, spec: EngineRequest) -> None:
        expected, reason = foretell(spec, self.config.max_model_len)
        assert self.outputs[spec.request_id] == expected
        delta = self.finished[spec.request_id]
        assert delta.finish_reason is reason
        assert delta.stop_token_id == (expected[-1] if reason is FinishReason.STOP else None)


@pytest.fixture(scope="session")
def config_of() -> Callable[..., ResolvedConfig]:
    return make_config


@pytest.fixture(scope="session")
def manifest_of() -> Callable[..., AdapterManifest]:
    return make_manifest


@pytest.fixture(scope="session")
def engine_of() -> Callable[..., FakeEngine]:
    """engine_of(num_blocks, num_slots, steps_ahead=..., **config) -> FakeEngine"""

    def make(
        num_blocks: int,
        num_slots: int = 0,
        *,
        steps_ahead: int = 0,
        speculation: Speculation | None = None,
        **config: Any,
    ) -> FakeEngine:
        resolved = make_config(enable_lora=num_slots > 0, **config)
        return FakeEngine(resolved, num_blocks, num_slots, steps_ahead=steps_ahead, speculation=speculation)

    return make
