"""The contract between scheduler and runner: immutable data, ints and tuples, no tensor.

A request is described in full when it is admitted, and as a difference from then on. The runner keeps a row per
admitted request (token ids, block table, sampling state); `removed` says which rows to forget.

Sampled tokens stay with the runner: it appends them to the row, so that a plan can be made before the result of
the one before is known. `StepResult` tells the scheduler what they were.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.pooling import PoolingParams
from descant_engine.request import SampleLogprobs
from descant_engine.sampling_params import SamplingParams


class AdmittedRequest(NamedTuple):
    """A request that enters the batch: new, or resumed after preemption (then outputs are among its tokens)."""

    request_id: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    stop_token_ids: tuple[int, ...]
    """Every token that would end the request: eos (unless ignored) and the client's own; masked until min_tokens."""
    adapter_slot: int
    """-1 for the base model; fixed while the request is admitted."""
    pooling: PoolingParams | None = None
    """What the request wants instead of tokens."""


class ScheduledRequest(NamedTuple):
    """One request's part in this step: tokens [num_computed_tokens, num_computed_tokens + num_scheduled_tokens)."""

    request_id: str
    num_computed_tokens: int
    num_scheduled_tokens: int
    new_block_ids: tuple[int, ...]
    """Append these to the row's block table before the step."""
    samples: bool
    """True if the last scheduled token that is no draft is the newest one: its logits give the next token."""
    num_draft_tokens: int = 0
    """The last so many scheduled tokens are drafts: guesses of what follows the newest one. Each gives a sample too."""
    draft_token_ids: tuple[int, ...] = ()
    """What they are; empty if the draft model is to make them."""


class AdapterMoveKind(Enum):
    LOAD_HOST = "load_host"
    """Read files into host memory, in a thread."""
    LOAD_DEVICE = "load_device"
    """Copy from host memory into the given blocks of the pool, under the given slot."""
    DROP_DEVICE = "drop_device"
    """Forget the slot: its blocks may be overwritten from this step on."""
    DROP_HOST = "drop_host"


class AdapterMove(NamedTuple):
    kind: AdapterMoveKind
    manifest: AdapterManifest
    slot: int = -1
    block_ids: tuple[int, ...] = ()


class AdapterEvent(NamedTuple):
    """A finished move. `error` is None or a message fit for the client whose request needed the adapter."""

    kind: AdapterMoveKind
    digest: str
    error: str | None = None
    content_digest: str | None = None
    """With LOAD_HOST: the identity of what was read."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the runner does in one step, in this order: moves, removals, admissions, then the scheduled tokens."""

    step_id: int
    adapter_moves: tuple[AdapterMove, ...]
    removed: tuple[str, ...]
    admitted: tuple[AdmittedRequest, ...]
    scheduled: tuple[ScheduledRequest, ...]

    @property
    def num_tokens(self) -> int:
        return sum(request.num_scheduled_tokens for request in self.scheduled)

    @property
    def is_empty(self) -> bool:
        return not (self.adapter_moves or self.removed or self.admitted or self.scheduled)


@dataclass(frozen=True, slots=True)
class StepResult:
    """The outcome of a plan."""

    step_id: int
    sampled: tuple[tuple[str, int], ...]
    """(request_id, token id) of every scheduled request with `samples`, in the plan's order. One with drafts has as
    many as were right, and one more: what was drawn where they ended or ceased to be right."""
    logprobs: Mapping[str, SampleLogprobs] = field(default_factory=dict)
    """By request id, for those among the sampled that asked."""
    pooled: Mapping[str, bytes] = field(default_factory=dict)
    """By request id: the float32 vectors of those whose prompt the step completed and that asked for one."""
