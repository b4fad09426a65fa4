"""The draw itself. Reproducible per request: it depends on the request's seed and the token's position only, never on
what else is in the batch. The same seed draws other tokens on another kind of device.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from descant_engine.runner.sampling_states import RowOptions, SampleRows, User
from descant_engine.runner.transfer import to_device
from descant_engine.scheduler.plan import AdmittedRequest
from descant_engine.seeds import MASK_64, mix_seeds


class Randomness(NamedTuple):
    temperature: float
    seed: int


class DrawTensors(NamedTuple):
    temperatures: Tensor
    """[num_samples] float32; 0 where the largest logit is taken"""
    seeds: Tensor
    """[num_samples] int64"""


Chooser = Callable[[Tensor, DrawTensors, Tensor], Tensor]
"""logits [num_samples, vocab], what is asked, positions [num_samples] -> token ids [num_samples] int64."""


class Draw:
    def __init__(self, device: torch.device) -> None:
        self._rows = RowOptions[Randomness, DrawTensors](self._gather)
        self._largest = _largest_on(device)
        self._chooser = _chooser_on(device)

    def add(self, row: int, request: AdmittedRequest) -> None:
        params = request.params
        self._rows.set(row, None if params.is_greedy else Randomness(params.temperature, request.seed))

    def largest(self, logits: Tensor) -> Tensor:
        """[num_samples, vocab] -> [num_samples] int64: the lowest id among equals."""
        return self._largest(logits)

    def choose(self, logits: Tensor, batch: SampleRows) -> Tensor:
        """Token ids [num_samples] int64 by each row's temperature and seed; the logits are not divided by it yet."""
        if not self._rows.users(batch):
            return self._largest(logits)
        return self._chooser(logits, self._rows.tensors(batch), batch.positions)

    @staticmethod
    def _gather(users: list[User[Randomness]], batch: SampleRows) -> DrawTensors:
        temperatures = np.zeros(len(batch.row_ids), dtype=np.float32)
        seeds = np.zeros(len(batch.row_ids), dtype=np.uint64)
        for user in users:
            temperatures[user.index], seeds[user.index] = user.wanted.temperature, user.wanted.seed & MASK_64
        device = batch.rows.device
        return DrawTensors(to_device(temperatures, device), to_device(seeds.view(np.int64), device))


def _largest_on(device: torch.device) -> Callable[[Tensor], Tensor]:
    if device.type != "cuda":
        return lambda logits: logits.float().argmax(-1)  # of half the width, argmax takes four times as long there
    from descant_kernels import greedy

    return greedy


def _chooser_on(device: torch.device) -> Chooser:
    if device.type != "cuda":
        return choose_by_inversion
    from descant_kernels import sample

    return lambda logits, asked, positions: sample(logits, asked.temperatures, asked.seeds, positions)


def choose_by_inversion(logits: Tensor, asked: DrawTensors, positions: Tensor) -> Tensor:
    """Inverts each row's cumulative distribution at one uniform number a row: on the CPU the random bits cost more
    than the sums. See `Chooser`."""
    is_random = asked.temperatures > 0
    token_ids = logits.float().argmax(-1)
    random = is_random.nonzero().flatten()
    scores = logits[random].float() / asked.temperatures[random].unsqueeze(1)
    cumulative = scores.softmax(1).cumsum(1, dtype=torch.float64)
    uniform = _uniform(asked.seeds[random].numpy(), positions[random].numpy())
    targets = torch.from_numpy(uniform).unsqueeze(1) * cumulative[:, -1:]
    # The first token beyond the target: one that is impossible adds nothing, and so never is.
    drawn = torch.searchsorted(cumulative, targets, right=True).squeeze(1)
    # A row of NaN finds nothing; whoever reads the id must still stay inside the vocabulary.
    token_ids[random] = drawn.clamp_(max=logits.shape[1] - 1)
    return token_ids


def _uniform(seeds: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Multiples of 2^-52 in [0, 1): so few bits that the product with a total stays below the total."""
    bits = mix_seeds(seeds.view(np.uint64), positions.view(np.uint64))
    return (bits >> np.uint64(12)).astype(np.float64) * 2.0**-52
