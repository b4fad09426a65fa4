"""A second, smaller model of the same vocabulary that guesses a request's next tokens, for the model to check at once.

It works on the same rows and block tables as the model, with a pool of its own that has a block for each block id: what
is decided about blocks holds for both, and nobody counts twice. It has no adapters. It computes nothing until it is
asked, and then first what it has missed.
"""

from dataclasses import replace

import numpy as np
from torch import Tensor

from descant_engine.config import ResolvedConfig
from descant_engine.forward_context import StepContext, step_context
from descant_engine.models import load_model
from descant_engine.models.llama import LlamaForCausalLM
from descant_engine.runner.cuda_graphs import NO_MODULES
from descant_engine.runner.drafts import PendingDrafts
from descant_engine.runner.input_batch import InputBatch, IntArray, StepRows, gather
from descant_engine.runner.memory import allocate_pool, kv_caches
from descant_engine.runner.request_states import RequestStates
from descant_engine.runner.sampler import Sampler
from descant_engine.runner.sampling_states import SampleRows
from descant_engine.runner.step_graphs import StepGraphs
from descant_engine.runner.transfer import to_device, to_host
from descant_engine.scheduler.plan import AdmittedRequest


def draft_config(config: ResolvedConfig) -> ResolvedConfig | None:
    """The draft model's, if there is one: in all that is not the model's own it is the engine's."""
    speculative = config.user.speculative_config
    if config.draft_shape is None or speculative is None or speculative.model is None:
        return None
    user = replace(config.user, model=speculative.model, speculative_config=None, enable_lora=False)
    return replace(config, user=user, shape=config.draft_shape, draft_shape=None, pooling=None)


class DraftModel:
    """Draws as the model does, by each request's options, seed and positions: where the two agree on what is likely,
    the same random numbers give the same token (Daliri et al., arXiv 2408.07978)."""

    def __init__(self, config: ResolvedConfig) -> None:
        """Loads the weights. `allocate` comes before anything else."""
        self._config = config
        self._model: LlamaForCausalLM = load_model(config)

    def allocate(self, num_blocks: int, states: RequestStates) -> None:
        """Memory for as many blocks as the model has."""
        dtype = next(self._model.parameters()).dtype
        pool = allocate_pool(self._config, num_blocks, dtype, states.device)
        self._kv_caches = kv_caches(pool, self._config.shape, self._config.user.block_size)
        self._states = states
        self._sampler = Sampler(states.device)
        self._graphs = None
        if states.device.type == "cuda":
            self._graphs = StepGraphs(self._model, states, self._kv_caches, None, self._config)
        self._num_computed: IntArray = np.zeros(states.spare_row + 1, dtype=np.int64)
        """By row: its first so many tokens have their keys and values in the pool."""

    def admit(self, row: int, request: AdmittedRequest) -> None:
        self._sampler.add(row, request)
        self._num_computed[row] = 0

    def prepare_next(self) -> bool:
        return self._graphs is not None and self._graphs.capture_next()

    def follow(self, step: StepRows) -> None:
        """To be told of every step: what a row has beyond its computed tokens was guessed wrongly."""
        self._num_computed[step.rows] = np.minimum(self._num_computed[step.rows], step.num_computed)

    def draft(self, step: StepRows) -> PendingDrafts:
        """Writes drafts after the newest tokens of the step's rows, as many as it has room for. Returns them."""
        assert step.num_drafts is not None
        drafting = step.num_drafts.nonzero()[0]
        rows, lengths, newest = step.rows[drafting], step.num_drafts[drafting], step.num_computed[drafting]
        self._catch_up(rows, newest)
        first = self._num_computed[rows]
        self._advance(rows, first, newest + 1 - first)
        for place in range(1, int(lengths.max())):
            wanted = lengths > place
            self._advance(rows[wanted], newest[wanted] + place, np.ones(int(wanted.sum()), dtype=np.int64))
        self._num_computed[rows] = newest + lengths
        return self._pending(step, rows, lengths, newest)

    def _catch_up(self, rows: IntArray, newest: IntArray) -> None:
        """Computes what was missed, until what is left fits into one step, the newest tokens among it."""
        budget = self._config.max_num_batched_tokens
        while (newest + 1 - self._num_computed[rows]).sum() > budget:
            missing = newest - self._num_computed[rows]
            counts = np.minimum(missing, np.maximum(budget - (missing.cumsum() - missing), 0))
            some = counts > 0
            self._hidden(self._gather(rows[some], self._num_computed[rows[some]], counts[some], samples=False))
            self._num_computed[rows] += counts

    def _advance(self, rows: IntArray, first: IntArray, counts: IntArray) -> None:
        """Computes `counts` tokens of each row from `first` on, and writes what it draws behind them."""
        lengths = first + counts
        if self._graphs is not None and counts.max() == 1:
            hidden, device_rows, positions = self._graphs.decode(rows, first, NO_MODULES)
        else:
            batch = self._gather(rows, first, counts, samples=True)
            device_rows, positions = batch.sample_rows, batch.sample_positions
            hidden = self._hidden(batch)[batch.logits_indices]
        logits = self._model.compute_logits(hidden)
        sampled = SampleRows(tuple(rows.tolist()), tuple(lengths.tolist()), device_rows, positions, self._states)
        self._states.append_sampled(device_rows, positions, self._sampler.sample(logits, sampled))

    def _gather(self, rows: IntArray, first: IntArray, counts: IntArray, *, samples: bool) -> InputBatch:
        step = StepRows(rows, first, counts, np.full(len(rows), samples), request_ids=(), slots_in_batch=())
        return gather(step, self._states, self._config.user.block_size)

    def _hidden(self, batch: InputBatch) -> Tensor:
        hidden = None if self._graphs is None else self._graphs.mixed(batch, NO_MODULES)
        if hidden is None:
            with step_context(StepContext(self._kv_caches, batch.attention, lora=None)):
                hidden = self._model(batch.input_ids, batch.positions)
        return hidden

    def _pending(self, step: StepRows, rows: IntArray, lengths: IntArray, newest: IntArray) -> PendingDrafts:
        places = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        cells = np.stack([np.repeat(rows, lengths), np.repeat(newest + 1, lengths) + places])
        at_rows, at_positions = to_device(cells, self._states.device)
        assert step.num_drafts is not None
        of_each = tuple(step.num_drafts[step.samples].tolist())
        return PendingDrafts(of_each, to_host(self._states.token_ids[at_rows, at_positions]))
