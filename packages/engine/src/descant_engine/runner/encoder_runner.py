"""Carries out a StepPlan on an encoder: every request is admitted, computed whole and done with in one step.

Nothing is kept between steps, so there are no rows, no KV and no graphs. The blocks that the scheduler counts have no
bytes here; there are enough for every step that may be under way.
"""

from collections.abc import Sequence

import numpy as np
import torch

from descant_engine.config import ResolvedConfig
from descant_engine.grammar.bitmask import GrammarBitmask
from descant_engine.layers.sequences import sequences_of
from descant_engine.models import load_encoder
from descant_engine.runner.model_runner import LaunchedForward, PendingStep
from descant_engine.runner.pooler import NO_VECTORS, IntArray, PendingVectors, PooledRequest, finish, pool
from descant_engine.runner.transfer import to_device
from descant_engine.scheduler.plan import AdapterEvent, AdmittedRequest, StepPlan

STEPS_UNDER_WAY = 3
"""One that is planned, one that runs, and room to spare."""


class EncoderRunner:
    """Takes `ModelRunner`'s place."""

    num_adapter_slots = 0

    def __init__(self, config: ResolvedConfig) -> None:
        assert config.pooling is not None
        self._pooling = config.pooling
        self._device = torch.device(config.device)
        self._model = load_encoder(config)
        # Every request may leave a part of its last block empty.
        full_blocks = -(-config.max_num_batched_tokens // config.user.block_size)
        self.num_blocks = STEPS_UNDER_WAY * (full_blocks + config.max_num_seqs)

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> LaunchedForward:
        """Launches the step; on CUDA returns before it has run."""
        return LaunchedForward(plan.step_id, pooled=self._compute(plan.admitted) if plan.admitted else NO_VECTORS)

    def sample(self, forward: LaunchedForward, bitmask: GrammarBitmask | None = None) -> PendingStep:
        """There is nothing to sample."""
        return forward.without_samples()

    def prepare_next(self) -> bool:
        """There is nothing to prepare."""
        return False

    def finished_loads(self) -> tuple[AdapterEvent, ...]:
        """There are none."""
        return ()

    def wait_for_adapters(self, timeout: float) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is open."""

    def _compute(self, admitted: Sequence[AdmittedRequest]) -> PendingVectors:
        batch = sorted(admitted, key=lambda request: len(request.token_ids))
        lengths = np.array([len(request.token_ids) for request in batch])
        inputs = to_device(_inputs(batch, lengths), self._device)
        hidden = self._model(*inputs, sequences_of(lengths.tolist(), self._device))
        return finish(pool(hidden, lengths, self._pooling.type), _pooled(batch), self._pooling, self._model.head)


def _inputs(batch: Sequence[AdmittedRequest], lengths: IntArray) -> IntArray:
    """[3, num_tokens]: token ids, positions, token types."""
    token_ids = np.concatenate([np.asarray(request.token_ids, dtype=np.int64) for request in batch])
    positions = np.arange(len(token_ids)) - np.repeat(lengths.cumsum() - lengths, lengths)
    first_lengths = [_num_first_tokens(request) for request in batch]
    return np.stack([token_ids, positions, positions >= np.repeat(first_lengths, lengths)])


def _num_first_tokens(request: AdmittedRequest) -> int:
    given = None if request.pooling is None else request.pooling.num_first_tokens
    return len(request.token_ids) if given is None else given


def _pooled(batch: Sequence[AdmittedRequest]) -> list[PooledRequest]:
    return [
        PooledRequest(request.request_id, request.num_prompt_tokens, request.pooling)
        for request in batch
        if request.pooling is not None
    ]
