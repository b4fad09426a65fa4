"""Hidden states to vectors: one for each request that asked for that instead of tokens.

Vectors are float32 from the first sum on. Like tokens, they go to the host through pinned memory and are read when the
step's event has come.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from descant_engine.pooling import PoolingConfig, PoolingParams, PoolingType
from descant_engine.runner.transfer import to_device, to_host
from descant_engine.scheduler.plan import AdmittedRequest

if TYPE_CHECKING:
    from descant_engine.runner.input_batch import StepRows

IntArray = npt.NDArray[np.int64]


class PooledRequest(NamedTuple):
    request_id: str
    num_tokens: int
    params: PoolingParams


@dataclass(frozen=True, slots=True)
class PendingVectors:
    """One step's, on their way to the host."""

    groups: tuple[tuple[tuple[str, ...], Tensor], ...]
    """(request ids, [n, dimensions] float32), for each number of dimensions"""

    @property
    def comes_from_cuda(self) -> bool:
        """Whether there is an event to wait for."""
        return any(vectors.is_pinned() for _, vectors in self.groups)

    def result(self) -> dict[str, bytes]:
        """By request: the vector's components, float32 in this machine's order. Only after the step's event."""
        return {
            request_id: vector.tobytes()
            for request_ids, vectors in self.groups
            for request_id, vector in zip(request_ids, vectors.numpy(), strict=True)
        }


NO_VECTORS = PendingVectors(())


def pool(hidden: Tensor, lengths: IntArray, kind: PoolingType) -> Tensor:
    """hidden [sum(lengths), hidden_size] of texts, or of parts of them, one after another -> [n, hidden_size] float32.
    Of a mean only its sum, which parts have to be added to."""
    ends = lengths.cumsum()
    match kind:
        case PoolingType.MEAN:
            return torch.segment_reduce(hidden.float(), "sum", lengths=to_device(lengths, hidden.device))
        case PoolingType.LAST:
            return hidden[to_device(ends - 1, hidden.device)].float()
        case PoolingType.CLS:
            return hidden[to_device(ends - lengths, hidden.device)].float()


def _as_it_is(pooled: Tensor) -> Tensor:
    return pooled


def finish(
    pooled: Tensor,
    requests: Sequence[PooledRequest],
    config: PoolingConfig,
    head: Callable[[Tensor], Tensor] = _as_it_is,
) -> PendingVectors:
    """`pooled` [n, hidden_size] of whole texts, as `pool` gave it -> what the requests asked for. `head`: the model's
    own, before vectors are cut and normalized."""
    if config.type is PoolingType.MEAN:
        counts = np.array([[request.num_tokens] for request in requests], dtype=np.float32)
        pooled = pooled / to_device(counts, pooled.device)
    vectors = head(pooled)
    groups = []
    for dimensions, indices in _by_dimensions(requests).items():
        # A beginning of a vector, and only then its length: Matryoshka's order.
        chosen = vectors[:, :dimensions] if len(indices) == len(requests) else vectors[indices, :dimensions]
        chosen = F.normalize(chosen, dim=-1) if config.normalize else chosen
        groups.append((tuple(requests[index].request_id for index in indices), to_host(chosen.contiguous())))
    return PendingVectors(tuple(groups))


def _by_dimensions(requests: Iterable[PooledRequest]) -> dict[int | None, list[int]]:
    indices: dict[int | None, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        indices[request.params.dimensions].append(index)
    return indices


class _Row:
    def __init__(self, request: PooledRequest) -> None:
        self.request = request
        self._so_far: Tensor | None = None

    @property
    def so_far(self) -> Tensor:
        """[hidden_size] float32: of its chunks, of which there must have been one."""
        assert self._so_far is not None
        return self._so_far

    def add(self, chunk: Tensor, kind: PoolingType) -> None:
        if self._so_far is None or kind is PoolingType.LAST:
            self._so_far = chunk
        elif kind is PoolingType.MEAN:
            self._so_far = self._so_far + chunk


class Pooler:
    """For a decoder, whose prompts come in chunks: what its rows have come to."""

    def __init__(self, config: PoolingConfig | None) -> None:
        self._config = config
        self._rows: dict[int, _Row] = {}

    def add(self, row: int, admitted: AdmittedRequest) -> None:
        self._rows.pop(row, None)
        if admitted.pooling is not None:
            self._rows[row] = _Row(PooledRequest(admitted.request_id, admitted.num_prompt_tokens, admitted.pooling))

    def pool(self, hidden: Tensor, step: "StepRows") -> PendingVectors:
        """hidden [num_tokens, hidden_size] of a step -> the vectors of those whose prompt it completes."""
        if not self._rows or self._config is None:
            return NO_VECTORS
        indices = [index for index, row in enumerate(step.rows.tolist()) if row in self._rows]
        if not indices:
            return NO_VECTORS
        chunks = pool(*_tokens_of(hidden, step.query_lens, indices), self._config.type)
        done = []
        for row_id, chunk, seq_len in zip(step.rows[indices].tolist(), chunks, step.seq_lens[indices], strict=True):
            row = self._rows[row_id]
            row.add(chunk, self._config.type)
            if seq_len == row.request.num_tokens:
                done.append(self._rows.pop(row_id))
        if not done:
            return NO_VECTORS
        return finish(torch.stack([row.so_far for row in done]), [row.request for row in done], self._config)


def _tokens_of(hidden: Tensor, lengths: IntArray, indices: list[int]) -> tuple[Tensor, IntArray]:
    """The hidden states of some of a step's requests, one after another, and their lengths."""
    if len(indices) == len(lengths):
        return hidden, lengths
    starts = lengths.cumsum() - lengths
    tokens = np.concatenate([np.arange(starts[index], starts[index] + lengths[index]) for index in indices])
    return hidden[to_device(tokens, hidden.device)], lengths[indices]
