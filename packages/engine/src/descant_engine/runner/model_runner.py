"""Carries out a StepPlan: rows, inputs, forward pass, sample. Holds the device's memory; decides nothing."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from descant_engine.adapters.manifest import TargetModule
from descant_engine.config import ResolvedConfig
from descant_engine.forward_context import LoraInputs, StepContext, step_context
from descant_engine.grammar.bitmask import GrammarBitmask
from descant_engine.models import attach_lora, load_model
from descant_engine.runner.adapter_memory import AdapterMemory
from descant_engine.runner.cuda_graphs import NO_MODULES
from descant_engine.runner.draft_model import DraftModel, draft_config
from descant_engine.runner.drafts import PendingDrafts
from descant_engine.runner.grammar_mask import apply_bitmask
from descant_engine.runner.input_batch import InputBatch, StepRows, gather
from descant_engine.runner.logprobs import NO_LOGPROBS, Logprobs, PendingLogprobs
from descant_engine.runner.memory import allocate_pool, kv_caches, profile_num_blocks
from descant_engine.runner.pooler import NO_VECTORS, PendingVectors, Pooler
from descant_engine.runner.request_states import RequestStates
from descant_engine.runner.sampler import LogitsMask, Sampler
from descant_engine.runner.sampling_states import SampleRows
from descant_engine.runner.step_graphs import StepGraphs
from descant_engine.runner.transfer import to_host
from descant_engine.scheduler.plan import AdapterEvent, StepPlan, StepResult

MAX_ADAPTER_SLOTS = 4096


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step that was launched. On CUDA it is still running; `result` waits for its tokens, and only for them."""

    step_id: int
    request_ids: tuple[str, ...]
    token_ids: Tensor
    """[num_samples] on the host; valid, as `logprobs` are, once `arrived`."""
    logprobs: PendingLogprobs
    arrived: torch.cuda.Event | None
    pooled: PendingVectors = NO_VECTORS
    drafts: PendingDrafts | None = None

    def result(self) -> StepResult:
        if self.arrived is not None:
            self.arrived.synchronize()
        sampled = tuple(zip(self.request_ids, self.token_ids.tolist(), strict=True))
        if self.drafts is not None:
            sampled = self.drafts.accepted(sampled)
        return StepResult(self.step_id, sampled, self.logprobs.result(), self.pooled.result())


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step's rows gave, on the device."""

    token_ids: Tensor
    """[num_samples] int64"""
    logprobs: PendingLogprobs


@dataclass(frozen=True, slots=True)
class LaunchedForward:
    """A forward pass that was launched: what there is to sample from. The logits are on the device, and on CUDA are
    still being computed."""

    step_id: int
    step: StepRows | None = None
    """None if nothing was scheduled."""
    logits: Tensor | None = None
    """[num_samples, vocab]; None if nothing is sampled."""
    rows: Tensor | None = None
    """[num_samples] int64: the rows that sample"""
    positions: Tensor | None = None
    """[num_samples] int64: of the tokens to come"""
    pooled: PendingVectors = NO_VECTORS
    drafts: PendingDrafts | None = None

    def without_samples(self) -> PendingStep:
        """The step, if there is nothing to sample."""
        arrived = _recorded_event() if self.pooled.comes_from_cuda else None
        nothing = torch.empty(0, dtype=torch.int64)
        return PendingStep(self.step_id, (), nothing, NO_LOGPROBS, arrived, self.pooled)


class ModelRunner:
    """`num_blocks` and `num_adapter_slots` are what the memory profile found; the scheduler is built from them."""

    def __init__(self, config: ResolvedConfig) -> None:
        self._config = config
        self._device = torch.device(config.device)
        self._model = load_model(config)
        if config.user.enable_lora:
            attach_lora(self._model)
        drafting = draft_config(config)
        self._draft_model = None if drafting is None else DraftModel(drafting)
        draft_block_bytes = 0 if drafting is None else drafting.block_bytes
        self.num_blocks = profile_num_blocks(self._model, config, self._device, draft_block_bytes=draft_block_bytes)
        max_loras = config.user.max_loras
        self.num_adapter_slots = min(self.num_blocks, MAX_ADAPTER_SLOTS if max_loras is None else max_loras)
        dtype = next(self._model.parameters()).dtype
        pool = allocate_pool(config, self.num_blocks, dtype, self._device)
        self._kv_caches = kv_caches(pool, config.shape, config.user.block_size)
        self._states = RequestStates(config.max_num_seqs, config.max_model_len, config.user.block_size, self._device)
        self._sampler = Sampler(self._device)
        self._logprobs = Logprobs(config.shape.vocab_size)
        self._pooler = Pooler(config.pooling)
        self._adapters = AdapterMemory(config, pool, self.num_adapter_slots) if config.user.enable_lora else None
        self._graphs = self._step_graphs() if config.device == "cuda" else None
        if self._draft_model is not None:
            self._draft_model.allocate(self.num_blocks, self._states)

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> LaunchedForward:
        """Launches all of the step but its samples; on CUDA returns before it has run. `sample` has to follow before
        the next forward pass."""
        if self._adapters is not None:
            self._adapters.start(plan.adapter_moves)
        self._states.apply(plan)
        for admitted in plan.admitted:
            row = self._states.row(admitted.request_id)
            self._sampler.add(row, admitted)
            self._logprobs.add(row, admitted)
            self._pooler.add(row, admitted)
            if self._draft_model is not None:
                self._draft_model.admit(row, admitted)
        if not plan.scheduled:
            return LaunchedForward(plan.step_id)
        step = StepRows.of(plan.scheduled, self._states)
        drafts = self._drafts(plan, step)
        if self._graphs and step.is_decode:
            return LaunchedForward(plan.step_id, step, *self._decode(step, self._graphs))
        return LaunchedForward(plan.step_id, step, *self._forward(step), drafts)

    @torch.inference_mode()
    def sample(self, forward: LaunchedForward, bitmask: GrammarBitmask | None = None) -> PendingStep:
        """Launches the rest. `bitmask`: the tokens that grammars allow in this step."""
        step, logits = forward.step, forward.logits
        if step is None or logits is None or forward.rows is None or forward.positions is None:
            return forward.without_samples()
        mask = None if bitmask is None else partial(apply_bitmask, bitmask)
        sampled = self._sample(logits, step, forward.rows, forward.positions, mask)
        host_ids = to_host(sampled.token_ids)
        arrived = _recorded_event() if sampled.token_ids.is_cuda else None
        return PendingStep(
            forward.step_id,
            step.sampled_request_ids,
            host_ids,
            sampled.logprobs,
            arrived,
            forward.pooled,
            forward.drafts,
        )

    @torch.inference_mode()
    def prepare_next(self) -> bool:
        """Makes ready one thing that steps would stop for; False if nothing is left to prepare."""
        if self._graphs is not None and self._graphs.capture_next():
            return True
        return self._draft_model is not None and self._draft_model.prepare_next()

    def finished_loads(self) -> tuple[AdapterEvent, ...]:
        """Moves of adapters that are over since the last call."""
        return () if self._adapters is None else self._adapters.finished()

    def wait_for_adapters(self, timeout: float) -> None:
        if self._adapters is not None:
            self._adapters.wait(timeout)

    def close(self) -> None:
        if self._adapters is not None:
            self._adapters.close()

    def _drafts(self, plan: StepPlan, step: StepRows) -> PendingDrafts | None:
        """Those of the step, if it has any. Its rows have them by now."""
        if self._draft_model is not None:
            self._draft_model.follow(step)
        if step.num_drafts is None:
            return None
        return PendingDrafts.of(plan.scheduled) if self._draft_model is None else self._draft_model.draft(step)

    def _decode(self, step: StepRows, graphs: StepGraphs) -> tuple[Tensor, Tensor, Tensor]:
        hidden, rows, positions = graphs.decode(step.rows, step.num_computed, self._adapted_modules(step))
        return self._model.compute_logits(hidden), rows, positions

    def _forward(self, step: StepRows) -> tuple[Tensor | None, Tensor, Tensor, PendingVectors]:
        batch = gather(step, self._states, self._config.user.block_size)
        hidden = None if self._graphs is None else self._graphs.mixed(batch, self._adapted_modules(step))
        if hidden is None:
            hidden = self._launch(batch, step)
        self._logprobs.score_prompts(hidden, step, self._states, self._model.compute_logits)
        pooled = self._pooler.pool(hidden, step)
        logits = self._model.compute_logits(hidden[batch.logits_indices]) if step.samples.any() else None
        return logits, batch.sample_rows, batch.sample_positions, pooled

    def _launch(self, batch: InputBatch, step: StepRows) -> Tensor:
        """Kernel by kernel."""
        lora = None
        if self._adapters is not None and step.slots_in_batch:
            modules = self._adapted_modules(step)
            lora = LoraInputs(self._adapters.tables, batch.token_adapter_slot, modules)
        with step_context(StepContext(self._kv_caches, batch.attention, lora)):
            hidden: Tensor = self._model(batch.input_ids, batch.positions)
        return hidden

    def _adapted_modules(self, step: StepRows) -> frozenset[TargetModule]:
        return NO_MODULES if self._adapters is None else self._adapters.modules_of(step.slots_in_batch)

    def _sample(
        self, logits: Tensor, step: StepRows, rows: Tensor, positions: Tensor, mask: LogitsMask | None
    ) -> Sampled:
        """The next tokens, which are also appended to their rows."""
        row_ids, lengths = step.sample_rows.tolist(), step.sample_positions.tolist()
        batch = SampleRows(tuple(row_ids), tuple(lengths), rows, positions, self._states)
        kept = self._logprobs.keep(logits, batch)
        token_ids = self._sampler.sample(logits, batch, mask)
        self._states.append_sampled(rows, positions, token_ids)
        return Sampled(token_ids, self._logprobs.score(kept, token_ids, batch, step.sampled_request_ids))

    def _step_graphs(self) -> StepGraphs:
        tables = None if self._adapters is None else self._adapters.tables
        return StepGraphs(self._model, self._states, self._kv_caches, tables, self._config)


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event
