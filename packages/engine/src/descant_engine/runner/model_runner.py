"""Carries out a StepPlan: rows, inputs, forward pass, sample. Holds the device's memory; decides nothing."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from descant_engine.adapter import TargetModule
from descant_engine.config import ResolvedConfig
from descant_engine.forward_context import LoraInputs, StepContext, step_context
from descant_engine.models import attach_lora, load_model
from descant_engine.runner.adapter_memory import AdapterMemory
from descant_engine.runner.cuda_graphs import NO_MODULES, DecodeGraphs
from descant_engine.runner.input_batch import StepRows, gather
from descant_engine.runner.memory import allocate_pool, kv_caches, profile_num_blocks
from descant_engine.runner.request_states import RequestStates
from descant_engine.runner.sampler import Sampler
from descant_engine.runner.sampling_states import SampleRows
from descant_engine.runner.transfer import to_device
from descant_engine.scheduler.plan import AdapterEvent, StepPlan, StepResult

MAX_ADAPTER_SLOTS = 4096


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step that was launched. On CUDA it is still running; `result` waits for its tokens, and only for them."""

    step_id: int
    request_ids: tuple[str, ...]
    token_ids: Tensor
    """[num_samples] on the host; valid once `arrived`."""
    arrived: torch.cuda.Event | None
    adapter_events: tuple[AdapterEvent, ...]

    def result(self) -> StepResult:
        if self.arrived is not None:
            self.arrived.synchronize()
        sampled = tuple(zip(self.request_ids, self.token_ids.tolist(), strict=True))
        return StepResult(self.step_id, sampled, self.adapter_events)


class ModelRunner:
    """`num_blocks` and `num_adapter_slots` are what the memory profile found; the scheduler is built from them."""

    def __init__(self, config: ResolvedConfig) -> None:
        self._config = config
        self._device = torch.device(config.device)
        self._model = load_model(config)
        if config.user.enable_lora:
            attach_lora(self._model)
        self.num_blocks = profile_num_blocks(self._model, config, self._device)
        self.num_adapter_slots = min(self.num_blocks, MAX_ADAPTER_SLOTS)
        dtype = next(self._model.parameters()).dtype
        pool = allocate_pool(config, self.num_blocks, dtype, self._device)
        self._kv_caches = kv_caches(pool, config.shape, config.user.block_size)
        self._states = RequestStates(config.max_num_seqs, config.max_model_len, config.user.block_size, self._device)
        self._sampler = Sampler(self._device)
        self._adapters = AdapterMemory(config, pool, self.num_adapter_slots) if config.user.enable_lora else None
        self._graphs = self._decode_graphs() if config.device == "cuda" else None

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> PendingStep:
        """Launches the step; on CUDA returns before it has run."""
        events = self._move_adapters(plan)
        self._states.apply(plan)
        for admitted in plan.admitted:
            self._sampler.add(self._states.row(admitted.request_id), admitted)
        if not plan.scheduled:
            return PendingStep(plan.step_id, (), torch.empty(0, dtype=torch.int64), None, events)
        step = StepRows.of(plan.scheduled, self._states)
        token_ids = self._decode(step, self._graphs) if self._graphs and step.is_decode else self._forward(step)
        host_ids, arrived = _to_host(token_ids)
        return PendingStep(plan.step_id, step.sampled_request_ids, host_ids, arrived, events)

    def wait_for_adapters(self, timeout: float) -> None:
        if self._adapters is not None:
            self._adapters.wait(timeout)

    def close(self) -> None:
        if self._adapters is not None:
            self._adapters.close()

    def _move_adapters(self, plan: StepPlan) -> tuple[AdapterEvent, ...]:
        if self._adapters is None:
            return ()
        self._adapters.start(plan.adapter_moves)
        return self._adapters.finished()

    def _decode(self, step: StepRows, graphs: DecodeGraphs) -> Tensor:
        rows, positions = to_device(np.stack([step.rows, step.num_computed]), self._device)
        logits = graphs.replay(rows, positions, self._adapted_modules(step))
        return self._sample(logits, step, rows, positions + 1)

    def _forward(self, step: StepRows) -> Tensor:
        batch = gather(step, self._states, self._config.user.block_size)
        lora = None
        if self._adapters is not None and step.slots_in_batch:
            modules = self._adapted_modules(step)
            lora = LoraInputs(self._adapters.tables, batch.token_adapter_slot, step.slots_in_batch, modules)
        with step_context(StepContext(self._kv_caches, batch.attention, lora)):
            hidden = self._model(batch.input_ids, batch.positions)
        if not step.samples.any():
            return torch.empty(0, dtype=torch.int64, device=self._device)
        logits = self._model.compute_logits(hidden[batch.logits_indices])
        return self._sample(logits, step, batch.sample_rows, batch.sample_positions)

    def _adapted_modules(self, step: StepRows) -> frozenset[TargetModule]:
        return NO_MODULES if self._adapters is None else self._adapters.modules_of(step.slots_in_batch)

    def _sample(self, logits: Tensor, step: StepRows, rows: Tensor, positions: Tensor) -> Tensor:
        """Token ids [num_samples], which are also appended to their rows."""
        row_ids, lengths = step.rows[step.samples].tolist(), step.seq_lens[step.samples].tolist()
        batch = SampleRows(tuple(row_ids), tuple(lengths), rows, positions, self._states)
        token_ids = self._sampler.sample(logits, batch)
        self._states.append_sampled(rows, positions, token_ids)
        return token_ids

    def _decode_graphs(self) -> DecodeGraphs:
        tables = None if self._adapters is None else self._adapters.tables
        return DecodeGraphs(self._model, self._states, self._kv_caches, tables, self._config.user.block_size)


def _to_host(token_ids: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if not token_ids.is_cuda:
        return token_ids, None
    on_host = torch.empty(token_ids.shape, dtype=token_ids.dtype, pin_memory=True)
    on_host.copy_(token_ids, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived
