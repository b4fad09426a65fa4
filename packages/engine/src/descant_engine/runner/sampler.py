"""Logits to tokens. Reproducible per request: a draw depends on the request's seed and the token's position only,
never on what else is in the batch.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from descant_engine.runner.sampling_states import (
    MinTokens,
    Penalties,
    SampleRows,
    SamplingFeature,
    Temperature,
    Truncation,
)
from descant_engine.scheduler.plan import AdmittedRequest

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MASK_64 = (1 << 64) - 1


class Sampler:
    def __init__(self, device: torch.device) -> None:
        self._largest = _largest_on(device)
        self.features: tuple[SamplingFeature, ...] = (Penalties(), MinTokens(), Temperature(), Truncation())
        self._seed_of_row: dict[int, int] = {}
        self._plain_rows: set[int] = set()
        """Greedy rows whose logits no feature changes: they just take the largest."""

    def add(self, row: int, request: AdmittedRequest) -> None:
        changes_logits = [feature.add(row, request) for feature in self.features]
        if request.params.is_greedy:
            self._seed_of_row.pop(row, None)
        else:
            self._seed_of_row[row] = request.seed
        if request.params.is_greedy and not any(changes_logits):
            self._plain_rows.add(row)
        else:
            self._plain_rows.discard(row)

    def sample(self, logits: Tensor, batch: SampleRows) -> Tensor:
        """logits [num_samples, vocab] -> token ids [num_samples] int64."""
        if self._plain_rows.issuperset(batch.row_ids):
            return self._largest(logits)
        logits = logits.float()
        for feature in self.features:
            feature.apply(logits, batch)
        # Gumbel-max: argmax(logits + Gumbel noise) is a draw from softmax(logits), without the softmax.
        for index, row in enumerate(batch.row_ids):
            if row in self._seed_of_row:
                logits[index] += _gumbel(logits[index], self._seed_of_row[row], batch.positions[index])
        return self._largest(logits)


def _largest_on(device: torch.device) -> Callable[[Tensor], Tensor]:
    """[num_rows, vocab] -> the index of each row's largest logit."""
    if device.type != "cuda":
        return partial(torch.argmax, dim=-1)
    from descant_kernels import greedy

    return greedy


def _gumbel(like: Tensor, seed: int, position: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(mix_seed(seed, position))
    exponential = torch.empty_like(like).exponential_(generator=generator)
    # A zero would make the noise infinite, and an impossible token (-inf) NaN.
    return -exponential.clamp_min_(torch.finfo(like.dtype).tiny).log()


def mix_seed(seed: int, position: int) -> int:
    """SplitMix64 (Steele et al., OOPSLA 2014) of the pair: neighbouring positions give unrelated streams."""
    z = (seed + (position + 1) * GOLDEN_GAMMA) & MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK_64
    return (z ^ (z >> 31)) & (MASK_64 >> 1)
