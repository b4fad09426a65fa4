"""Host memory for adapters, in blocks of the pool's size; pinned on CUDA, so that copies need no thread of the host.

Memory is pinned in chunks, which are kept and used again: each time the driver locks out every launch for a moment, and
the pages have to be there first. With a chunk for many blocks and no padding, what is taken is what is counted.
"""

import threading
import weakref
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from descant_engine.runner.transfer import tensor_of

CHUNK_BYTES = 64 << 20
"""Pinned at once: a few milliseconds of the driver's lock."""
_PORTABLE = 1
"""cudaHostRegisterPortable"""


class BlockRun(NamedTuple):
    """Neighbours in host memory and in the pool: one copy."""

    chunk: int
    row: int
    """First block in the chunk."""
    pool_block: int
    num_blocks: int


class HostBlocks:
    """Thread-safe. Blocks hold finite numbers at all times. How many may be taken is the caller's decision."""

    def __init__(self, block_elements: int, dtype: torch.dtype, *, max_blocks: int, is_pinned: bool) -> None:
        self._shape = (max(1, min(CHUNK_BYTES // (block_elements * dtype.itemsize), max_blocks)), block_elements)
        self._dtype = dtype
        self._is_pinned = is_pinned
        self._chunks: list[Tensor] = []
        self._words: list[npt.NDArray[np.generic]] = []
        self._free: list[int] = []
        """A heap: neighbours are taken together where that is possible."""
        self._lock = threading.Lock()
        self._growing = threading.Lock()

    @property
    def chunk_bytes(self) -> int:
        return self._shape[0] * self._shape[1] * self._dtype.itemsize

    def take(self, count: int) -> tuple[int, ...]:
        """Ids of `count` blocks, ascending, that are the caller's until he gives them back."""
        while (block_ids := self._try_take(count)) is None:
            with self._growing:
                while not self._has(count):
                    self._grow()
        return block_ids

    def give_back(self, block_ids: tuple[int, ...]) -> None:
        with self._lock:
            for block_id in block_ids:
                heappush(self._free, block_id)

    def grow(self) -> None:
        """Adds a chunk ahead of need."""
        with self._growing:
            self._grow()

    def words(self, block_id: int) -> npt.NDArray[np.generic]:
        """[block_elements] unsigned integers as wide as the dtype: the block's bits."""
        chunk, row = divmod(block_id, self._shape[0])
        block: npt.NDArray[np.generic] = self._words[chunk][row]
        return block

    def copy_to(self, pool: Tensor, pool_blocks: tuple[int, ...], block_ids: tuple[int, ...]) -> None:
        """pool[pool_blocks] = blocks, in few copies; on CUDA on the current stream."""
        for run in self._runs(block_ids, pool_blocks):
            source = self._chunks[run.chunk][run.row : run.row + run.num_blocks]
            pool[run.pool_block : run.pool_block + run.num_blocks].copy_(source, non_blocking=True)

    def _runs(self, block_ids: tuple[int, ...], pool_blocks: tuple[int, ...]) -> Iterator[BlockRun]:
        places = [(*divmod(host, self._shape[0]), block) for host, block in zip(block_ids, pool_blocks, strict=True)]
        starts = [i for i, place in enumerate(places) if i == 0 or place != _after(places[i - 1])]
        for start, stop in pairwise([*starts, len(places)]):
            yield BlockRun(*places[start], stop - start)

    def _has(self, count: int) -> bool:
        with self._lock:
            return len(self._free) >= count

    def _try_take(self, count: int) -> tuple[int, ...] | None:
        with self._lock:
            if len(self._free) < count:
                return None
            return tuple(heappop(self._free) for _ in range(count))

    def _grow(self) -> None:
        words = np.zeros(self._shape, dtype=f"u{self._dtype.itemsize}")
        chunk = tensor_of(words, self._dtype)
        if self._is_pinned:
            chunk.fill_(0)  # brings the pages, which would otherwise come under the driver's lock
            _pin(chunk)
        first = len(self._chunks) * self._shape[0]
        with self._lock:
            self._chunks.append(chunk)
            self._words.append(words)
            self._free += range(first, first + self._shape[0])
            heapify(self._free)


def _after(place: tuple[int, int, int]) -> tuple[int, int, int]:
    chunk, row, pool_block = place
    return chunk, row + 1, pool_block + 1


def _pin(memory: Tensor) -> None:
    """Until the tensor is gone."""
    cudart = torch.cuda.cudart()
    error = int(cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, _PORTABLE))
    if error != 0:
        raise MemoryError(
            f"{memory.nbytes} bytes of host memory for adapters cannot be pinned (CUDA error {error}); lower "
            "adapter_host_bytes"
        )
    release = weakref.finalize(memory, cudart.cudaHostUnregister, memory.data_ptr())
    release.atexit = False  # the process's end unpins everything
