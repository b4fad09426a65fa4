"""What each request asked of the sampler, one class a feature. A feature owns its rows' state and its hook; the
sampler only fans out. To add one: write a class with `add` and `apply`, and put it in `Sampler.features`.

`apply` changes the logits of all rows that use the feature at once. The host knows which they are, so a batch in which
nobody does costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from descant_engine.runner.request_states import RequestStates
from descant_engine.scheduler.plan import AdmittedRequest

WantedT = TypeVar("WantedT")
TensorsT = TypeVar("TensorsT")


@dataclass(frozen=True, slots=True)
class SampleRows:
    """The rows that sample in this step, in batch order, on the host and on the device."""

    row_ids: tuple[int, ...]
    lengths: tuple[int, ...]
    """Tokens before each sample."""
    rows: Tensor
    """[num_samples] int64: `row_ids`"""
    positions: Tensor
    """[num_samples] int64: `lengths`, which are also the samples' positions"""
    states: RequestStates


class SamplingFeature(Protocol):
    def add(self, row: int, request: AdmittedRequest) -> bool:
        """Remember (or forget, if it does not ask for the feature) what `row` wants. Rows are reused.

        Returns whether it may change the row's logits.
        """

    def is_used_by(self, batch: SampleRows) -> bool: ...

    def apply(self, logits: Tensor, batch: SampleRows) -> None:
        """Changes `logits` [num_samples, vocab] float32 in place. Called only for a batch that uses the feature."""


@dataclass(frozen=True, slots=True)
class User(Generic[WantedT]):
    """A row of the batch that uses a feature."""

    index: int
    """In the batch."""
    wanted: WantedT


class RowOptions(Generic[WantedT, TensorsT]):
    """What the rows that use one feature asked for, and the feature's tensors for the rows that sample now.

    The tensors are made anew only when the batch has changed, not for each step.
    """

    def __init__(self, gather: Callable[[list[User[WantedT]], SampleRows], TensorsT]) -> None:
        """`gather` makes the tensors for the users, at least one, among a batch's rows."""
        self._gather = gather
        self._of_row: dict[int, WantedT] = {}
        self._users: list[User[WantedT]] = []
        self._users_of: tuple[int, ...] | None = None
        """The batch whose users are known."""
        self._tensors: TensorsT | None = None

    def set(self, row: int, wanted: WantedT | None) -> bool:
        """None: the row does not use the feature. Returns whether it does."""
        before = self._of_row.pop(row, None)
        if wanted is not None:
            self._of_row[row] = wanted
        if before is not None or wanted is not None:
            self._users_of = None
        return wanted is not None

    def users(self, batch: SampleRows) -> list[User[WantedT]]:
        if not self._of_row:
            return []
        if self._users_of != batch.row_ids:
            self._users = [User(i, self._of_row[row]) for i, row in enumerate(batch.row_ids) if row in self._of_row]
            self._users_of = batch.row_ids
            self._tensors = None
        return self._users

    def tensors(self, batch: SampleRows) -> TensorsT:
        """For a batch that has users."""
        users = self.users(batch)
        if self._tensors is None:
            self._tensors = self._gather(users, batch)
        return self._tensors
