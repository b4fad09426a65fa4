"""Log-probabilities for the requests that asked for them: of sampled tokens, and of prompts.

They are taken from the model's own logits, before anything the sampler does, in float32. Like the tokens, they go to
the host through pinned memory and are read when the step's event has come: asking for them makes nobody wait.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from descant_engine.request import SampleLogprobs, TokenLogprobs
from descant_engine.runner.sampling_states import RowOptions, SampleRows, User
from descant_engine.runner.transfer import to_device, to_host
from descant_engine.scheduler.plan import AdmittedRequest

if TYPE_CHECKING:
    from descant_engine.runner.input_batch import StepRows
    from descant_engine.runner.request_states import RequestStates

MAX_LOGITS = 1 << 23
"""So many logits of a prompt are in memory at once."""
LOWEST = -9999.0
"""Stands for minus infinity, which JSON has no number for; OpenAI's value."""

ComputeLogits = Callable[[Tensor], Tensor]
"""hidden states [n, hidden_size] -> logits [n, vocab]"""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of n tokens: the token itself first, then the likeliest ones at its place."""

    token_ids: Tensor
    """[n, 1 + num_top] int64"""
    logprobs: Tensor
    """[n, 1 + num_top] float32"""
    ranks: Tensor
    """[n] int64, from 1, of the token itself"""

    @classmethod
    def of(cls, logits: Tensor, token_ids: Tensor, num_top: int) -> "TokenScores":
        """logits [n, vocab] and the token [n] at each place."""
        logits = logits.float()
        log_total = logits.logsumexp(1, keepdim=True)
        own = logits.gather(1, token_ids.unsqueeze(1))
        top = logits.topk(num_top, dim=1)
        return cls(
            token_ids=torch.cat([token_ids.unsqueeze(1), top.indices], dim=1),
            logprobs=(torch.cat([own, top.values], dim=1) - log_total).clamp_(min=LOWEST),
            ranks=(logits > own).sum(1) + 1,
        )

    def to_host(self) -> "TokenScores":
        """Valid once an event recorded after this call has come."""
        return TokenScores(to_host(self.token_ids), to_host(self.logprobs), to_host(self.ranks))

    def tokens(self) -> Iterator[TokenLogprobs]:
        """On the host: of each token, in order, with all its alternatives."""
        for token_ids, logprobs, rank in zip(
            self.token_ids.tolist(), self.logprobs.tolist(), self.ranks.tolist(), strict=True
        ):
            top = tuple(zip(token_ids[1:], logprobs[1:], strict=True))
            yield TokenLogprobs(token_ids[0], logprobs[0], rank, top)


@dataclass(slots=True)
class PromptRow:
    """A prompt that is being scored, chunk by chunk."""

    num_top: int
    num_prompt_tokens: int
    chunks: list[TokenScores] = field(default_factory=list)
    """On the host, or on their way."""


@dataclass(frozen=True, slots=True)
class PendingLogprobs:
    """One step's, on their way to the host."""

    users: tuple[tuple[str, int], ...]
    """(request id, number of alternatives wanted) of each row of `sampled`."""
    sampled: TokenScores | None
    prompts: tuple[tuple[str, PromptRow], ...]

    def result(self) -> dict[str, SampleLogprobs]:
        """By request. Only after the step's event."""
        sampled: dict[str, tuple[TokenLogprobs, ...]] = {}
        if self.sampled is not None:
            for (request_id, num_top), token in zip(self.users, self.sampled.tokens(), strict=True):
                sampled[request_id] = (*sampled.get(request_id, ()), token._replace(top=token.top[:num_top]))
        prompts = {name: tuple(token for chunk in row.chunks for token in chunk.tokens()) for name, row in self.prompts}
        return {name: SampleLogprobs(sampled.get(name, ()), prompts.get(name, ())) for name in {**sampled, **prompts}}


NO_LOGPROBS = PendingLogprobs((), None, ())


class Logprobs:
    """Which rows want them, and the prompts that are not complete yet."""

    def __init__(self, vocab_size: int) -> None:
        self._part_size = max(1, MAX_LOGITS // vocab_size)
        self._rows = RowOptions[int, Tensor](self._gather)
        self._prompts: dict[int, PromptRow] = {}

    def add(self, row: int, request: AdmittedRequest) -> None:
        """A request that comes back after preemption has its prompt's already, if it has any output."""
        params = request.params
        self._rows.set(row, params.logprobs)
        self._prompts.pop(row, None)
        if params.prompt_logprobs is not None and len(request.token_ids) == request.num_prompt_tokens:
            self._prompts[row] = PromptRow(params.prompt_logprobs, request.num_prompt_tokens)

    def score_prompts(
        self, hidden: Tensor, step: "StepRows", states: "RequestStates", compute_logits: ComputeLogits
    ) -> None:
        """hidden [num_tokens, hidden_size] of a step, whose tokens tell the prompt's next ones."""
        if not self._prompts:
            return
        starts = np.concatenate([[0], np.cumsum(step.query_lens)])
        for index, row in enumerate(step.rows.tolist()):
            if (prompt := self._prompts.get(row)) is None:
                continue
            first = int(step.num_computed[index])
            last = min(first + int(step.query_lens[index]), prompt.num_prompt_tokens - 1)
            if first < last:
                own = hidden[starts[index] : starts[index] + last - first]
                next_tokens = states.token_ids[row, first + 1 : last + 1]
                prompt.chunks += _score_in_parts(own, next_tokens, prompt.num_top, self._part_size, compute_logits)

    def keep(self, logits: Tensor, batch: SampleRows) -> Tensor | None:
        """A copy of the logits [num_samples, vocab] that will be asked for, before they are changed."""
        return logits[self._rows.tensors(batch)] if self._rows.users(batch) else None

    def score(
        self, kept: Tensor | None, token_ids: Tensor, batch: SampleRows, request_ids: tuple[str, ...]
    ) -> PendingLogprobs:
        """For the sampled token_ids [num_samples] of `request_ids`, from what `keep` gave."""
        prompts = tuple(
            (name, self._prompts.pop(row))
            for name, row in zip(request_ids, batch.row_ids, strict=True)
            if row in self._prompts
        )
        if kept is None:
            return PendingLogprobs((), None, prompts) if prompts else NO_LOGPROBS
        users = self._rows.users(batch)
        num_top = max(user.wanted for user in users)
        scores = TokenScores.of(kept, token_ids[self._rows.tensors(batch)], num_top).to_host()
        return PendingLogprobs(tuple((request_ids[u.index], u.wanted) for u in users), scores, prompts)

    @staticmethod
    def _gather(users: list[User[int]], batch: SampleRows) -> Tensor:
        return to_device(np.array([user.index for user in users], dtype=np.int64), batch.rows.device)


def _score_in_parts(
    hidden: Tensor, token_ids: Tensor, num_top: int, part_size: int, compute_logits: ComputeLogits
) -> Iterator[TokenScores]:
    for part, tokens in zip(hidden.split(part_size), token_ids.split(part_size), strict=True):
        yield TokenScores.of(compute_logits(part), tokens, num_top).to_host()
