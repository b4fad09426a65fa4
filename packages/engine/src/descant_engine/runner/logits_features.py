"""Features that move, forbid or allow single tokens. They act on the model's own logits, before any temperature."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from descant_engine.runner.sampling_states import RowOptions, SampleRows, User
from descant_engine.runner.transfer import to_device
from descant_engine.scheduler.plan import AdmittedRequest

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class PenaltyTensors:
    index: Tensor
    """[num_users] int64: rows of the batch"""
    repetition: Tensor
    """[num_users, 1] float32, as the others"""
    presence: Tensor
    frequency: Tensor


class Penalties:
    """repetition_penalty over prompt and output, presence and frequency over the output.

    Counts are taken from the rows' tokens at each step: no state to keep true under preemption.
    """

    def __init__(self) -> None:
        self._rows = RowOptions[tuple[float, float, float], PenaltyTensors](self._gather)

    def add(self, row: int, request: AdmittedRequest) -> bool:
        params = request.params
        wanted = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        return self._rows.set(row, None if wanted == (1.0, 0.0, 0.0) else wanted)

    def is_used_by(self, batch: SampleRows) -> bool:
        return bool(self._rows.users(batch))

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        wanted = self._rows.tensors(batch)
        scores = logits[wanted.index]
        rows, lengths = batch.rows[wanted.index], batch.positions[wanted.index].unsqueeze(1)
        longest = max(batch.lengths[user.index] for user in self._rows.users(batch))
        tokens = batch.states.token_ids[rows, :longest]
        place = torch.arange(longest, device=logits.device)
        is_known = place < lengths
        is_output = is_known & (place >= batch.states.num_prompt_tokens[rows].unsqueeze(1))
        known = torch.zeros_like(scores).scatter_add_(1, tokens, is_known.float())
        output = torch.zeros_like(scores).scatter_add_(1, tokens, is_output.float())
        penalized = torch.where(scores > 0, scores / wanted.repetition, scores * wanted.repetition)
        scores = torch.where(known > 0, penalized, scores)
        logits[wanted.index] = scores - wanted.frequency * output - wanted.presence * (output > 0)

    @staticmethod
    def _gather(users: list[User[tuple[float, float, float]]], batch: SampleRows) -> PenaltyTensors:
        values = np.array([user.wanted for user in users], dtype=np.float32)
        repetition, presence, frequency = to_device(values.T, batch.rows.device).unsqueeze(-1)
        return PenaltyTensors(_indices(users, batch), repetition, presence, frequency)


@dataclass(frozen=True, slots=True)
class Cells:
    """Single logits."""

    index: Tensor
    """[num_cells] int64: rows of the batch"""
    token_ids: Tensor
    """[num_cells] int64"""
    values: Tensor
    """[num_cells] float64: what the feature has to know of each"""


class LogitBias:
    """Adds to the logits of single tokens."""

    def __init__(self) -> None:
        self._rows = RowOptions[dict[int, float], Cells](self._gather)

    def add(self, row: int, request: AdmittedRequest) -> bool:
        return self._rows.set(row, dict(request.params.logit_bias) or None)

    def is_used_by(self, batch: SampleRows) -> bool:
        return bool(self._rows.users(batch))

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        cells = self._rows.tensors(batch)
        logits[cells.index, cells.token_ids] += cells.values.to(logits.dtype)

    @staticmethod
    def _gather(users: list[User[dict[int, float]]], batch: SampleRows) -> Cells:
        return _cells(((user.index, token, bias) for user in users for token, bias in user.wanted.items()), batch)


class AllowedTokens:
    """All other tokens are impossible."""

    def __init__(self) -> None:
        self._rows = RowOptions[tuple[int, ...], tuple[Tensor, Cells]](self._gather)

    def add(self, row: int, request: AdmittedRequest) -> bool:
        return self._rows.set(row, request.params.allowed_token_ids)

    def is_used_by(self, batch: SampleRows) -> bool:
        return bool(self._rows.users(batch))

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        index, cells = self._rows.tensors(batch)
        allowed = logits[cells.index, cells.token_ids]
        logits[index] = -torch.inf
        logits[cells.index, cells.token_ids] = allowed

    @staticmethod
    def _gather(users: list[User[tuple[int, ...]]], batch: SampleRows) -> tuple[Tensor, Cells]:
        cells = _cells(((user.index, token, 0.0) for user in users for token in user.wanted), batch)
        return _indices(users, batch), cells


class MinTokens:
    """Tokens that would end the request are impossible until it has min_tokens of output."""

    def __init__(self) -> None:
        self._rows = RowOptions[tuple[int, tuple[int, ...]], Cells](self._gather)

    def add(self, row: int, request: AdmittedRequest) -> bool:
        if not (request.params.min_tokens and request.stop_token_ids):
            return self._rows.set(row, None)
        first_free_length = request.num_prompt_tokens + request.params.min_tokens
        return self._rows.set(row, (first_free_length, request.stop_token_ids))

    def is_used_by(self, batch: SampleRows) -> bool:
        return any(batch.lengths[user.index] < user.wanted[0] for user in self._rows.users(batch))

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        cells = self._rows.tensors(batch)
        is_early = batch.positions[cells.index] < cells.values
        _forbid(logits, cells.index, cells.token_ids, is_early)

    @staticmethod
    def _gather(users: list[User[tuple[int, tuple[int, ...]]]], batch: SampleRows) -> Cells:
        return _cells(((user.index, token, user.wanted[0]) for user in users for token in user.wanted[1]), batch)


@dataclass(frozen=True, slots=True)
class BadSequenceTensors:
    index: Tensor
    """[num_sequences] int64: rows of the batch"""
    prefixes: Tensor
    """[num_sequences, longest prefix] int64, right-aligned; NO_TOKEN stands for anything"""
    lengths: Tensor
    """[num_sequences] int64: of the prefixes"""
    last_token_ids: Tensor
    """[num_sequences] int64"""


class BadSequences:
    """The last token of a forbidden sequence is impossible where the output ends with the tokens before it.

    Compared on the device: the host may not know the newest token yet.
    """

    def __init__(self) -> None:
        self._rows = RowOptions[tuple[tuple[int, ...], ...], BadSequenceTensors](self._gather)

    def add(self, row: int, request: AdmittedRequest) -> bool:
        return self._rows.set(row, request.params.bad_token_sequences or None)

    def is_used_by(self, batch: SampleRows) -> bool:
        return bool(self._rows.users(batch))

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        bad = self._rows.tensors(batch)
        rows, ends = batch.rows[bad.index], batch.positions[bad.index]
        width = bad.prefixes.shape[1]
        places = ends.unsqueeze(1) + torch.arange(-width, 0, device=logits.device)
        newest = batch.states.token_ids[rows.unsqueeze(1), places.clamp(min=0)]
        is_output = ends - bad.lengths >= batch.states.num_prompt_tokens[rows]
        is_match = ((newest == bad.prefixes) | (bad.prefixes == NO_TOKEN)).all(1) & is_output
        _forbid(logits, bad.index, bad.last_token_ids, is_match)

    @staticmethod
    def _gather(users: list[User[tuple[tuple[int, ...], ...]]], batch: SampleRows) -> BadSequenceTensors:
        sequences = [sequence for user in users for sequence in user.wanted]
        width = max(len(sequence) for sequence in sequences) - 1
        padded = [[NO_TOKEN] * (width + 1 - len(sequence)) + list(sequence) for sequence in sequences]
        index = [user.index for user in users for _ in user.wanted]
        lengths = [len(sequence) - 1 for sequence in sequences]
        table = np.column_stack([np.array(padded), lengths, index]).astype(np.int64)
        on_device = to_device(table, batch.rows.device)
        return BadSequenceTensors(
            on_device[:, -1], on_device[:, :width], lengths=on_device[:, -2], last_token_ids=on_device[:, width]
        )


def _forbid(logits: Tensor, index: Tensor, token_ids: Tensor, condition: Tensor) -> None:
    """A cell may be named twice, and forbidden by either."""
    penalty = torch.zeros(condition.shape, dtype=logits.dtype, device=logits.device).masked_fill_(condition, -torch.inf)
    logits.index_put_((index, token_ids), penalty, accumulate=True)


def _cells(cells: Iterable[tuple[int, int, float]], batch: SampleRows) -> Cells:
    # float64 holds every row number and token id exactly: one copy instead of two.
    table = to_device(np.array(list(cells), dtype=np.float64).T, batch.rows.device)
    return Cells(table[0].long(), table[1].long(), table[2])


def _indices(users: Sequence[User[Any]], batch: SampleRows) -> Tensor:
    return to_device(np.array([user.index for user in users], dtype=np.int64), batch.rows.device)
