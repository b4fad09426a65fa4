"""Logits to tokens, and to log-probabilities for those who asked.

In this order: log-probabilities of the model's own logits, features that change logits, the grammar's mask, truncation,
temperature and draw. Only what some row of the batch asked for is done; rows that take the largest logit, and nothing
else, cost one argmax.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from descant_engine.runner.draw import Draw
from descant_engine.runner.logits_features import AllowedTokens, BadSequences, LogitBias, MinTokens, Penalties
from descant_engine.runner.sampling_states import SampleRows, SamplingFeature
from descant_engine.runner.truncation import Truncation
from descant_engine.scheduler.plan import AdmittedRequest

LogitsMask = Callable[[Tensor], None]
"""Changes logits [num_samples, vocab] float32 in place: tokens that are impossible become -inf."""


class Sampler:
    def __init__(self, device: torch.device) -> None:
        self.features: tuple[SamplingFeature, ...] = (
            Penalties(),
            LogitBias(),
            AllowedTokens(),
            BadSequences(),
            MinTokens(),
        )
        self._truncation = Truncation(device)
        self._draw = Draw(device)
        self._plain_rows: set[int] = set()
        """Greedy rows whose logits no feature changes: they just take the largest."""

    def add(self, row: int, request: AdmittedRequest) -> None:
        changes_logits = [feature.add(row, request) for feature in (*self.features, self._truncation)]
        self._draw.add(row, request)
        if request.params.is_greedy and not any(changes_logits):
            self._plain_rows.add(row)
        else:
            self._plain_rows.discard(row)

    def sample(self, logits: Tensor, batch: SampleRows, mask: LogitsMask | None = None) -> Tensor:
        """logits [num_samples, vocab] -> token ids [num_samples] int64. The logits may be changed.

        `mask`: of a grammar, for this step; applied after every feature, so that nothing brings back what it forbids.
        """
        if self._plain_rows.issuperset(batch.row_ids):
            if mask is not None:
                mask(logits)
            return self._draw.largest(logits)
        features = [feature for feature in self.features if feature.is_used_by(batch)]
        truncates = self._truncation.is_used_by(batch)
        if features or truncates or mask is not None:
            logits = logits.float()
        for feature in features:
            feature.apply(logits, batch)
        if mask is not None:
            mask(logits)
        if truncates:
            self._truncation.apply(logits, batch)
        return self._draw.choose(logits, batch)
