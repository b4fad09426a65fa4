"""The bytes of adapters in host memory and in the pool. Does what the plan says, and reports when it is done.

disk -> host: a thread reads the safetensors file, takes its digest and lays its rank tiles out as pool blocks, once.
host -> pool: whole blocks and the slot's rows of the tables are copied, on CUDA from pinned memory on a side stream.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from descant_engine.adapters.manifest import AdapterManifest, TargetModule
from descant_engine.cache.adapter_layout import AdapterLayout, plan_layout, rank_tile
from descant_engine.config import ResolvedConfig
from descant_engine.forward_context import LoraTables
from descant_engine.runner.adapter_reading import AdapterReader
from descant_engine.runner.host_blocks import HostBlocks
from descant_engine.runner.slot_rows import AdapterScalars, slot_rows
from descant_engine.runner.transfer import send
from descant_engine.scheduler.plan import AdapterEvent, AdapterMove, AdapterMoveKind

MAX_LOADER_THREADS = 8
READY_HOST_BYTES = 512 << 20
"""Pinned as soon as the engine starts, beside everything else, so that the first adapters need not wait for it."""


@dataclass(frozen=True, slots=True)
class HostAdapter:
    content_digest: str
    layout: AdapterLayout
    scalars: AdapterScalars
    block_ids: tuple[int, ...]
    """Of the host blocks that hold exactly what goes into the pool."""


@dataclass(frozen=True, slots=True)
class DeviceCopy:
    move: AdapterMove
    done: torch.cuda.Event | None


class AdapterMemory:
    def __init__(self, config: ResolvedConfig, pool: Tensor, num_slots: int) -> None:
        self._config = config
        self._pool = pool
        tile = rank_tile(config.shape, config.block_elements)
        max_tiles = -(-config.user.max_lora_rank // tile)
        self.tables = empty_tables(pool, num_slots, config.shape.num_layers, max_tiles, tile)
        self._side_stream = torch.cuda.Stream(pool.device) if pool.is_cuda else None
        max_host_blocks = config.user.adapter_host_bytes // config.block_bytes
        self._host_blocks = HostBlocks(
            config.block_elements, pool.dtype, max_blocks=max_host_blocks, is_pinned=pool.is_cuda
        )
        self._threads = ThreadPoolExecutor(
            _num_loader_threads(pool), thread_name_prefix="adapter-loader", initializer=self._start_thread
        )
        self._own = threading.local()
        self._host: dict[str, HostAdapter] = {}
        self._loading: dict[str, Future[HostAdapter]] = {}
        self._copying: list[DeviceCopy] = []
        self._modules: dict[int, frozenset[TargetModule]] = {}
        if pool.is_cuda:
            for _ in range(min(READY_HOST_BYTES, config.user.adapter_host_bytes) // self._host_blocks.chunk_bytes):
                self._threads.submit(self._host_blocks.grow)

    def start(self, moves: tuple[AdapterMove, ...]) -> None:
        """Begins every move; none of them waits."""
        for move in moves:
            match move.kind:
                case AdapterMoveKind.LOAD_HOST:
                    self._loading[move.manifest.digest] = self._threads.submit(self._read, move.manifest)
                case AdapterMoveKind.DROP_DEVICE:
                    self._clear_slot(move.slot)
                case AdapterMoveKind.DROP_HOST:
                    self._drop_host(move.manifest.digest)
                case AdapterMoveKind.LOAD_DEVICE:
                    pass
        if copies := [move for move in moves if move.kind is AdapterMoveKind.LOAD_DEVICE]:
            self._copy(copies)

    def finished(self) -> tuple[AdapterEvent, ...]:
        """Moves that are over since the last call. What is launched from now on may use their slots."""
        events = [self._collect_read(digest) for digest, read in list(self._loading.items()) if read.done()]
        still_copying = []
        for copy in self._copying:
            if copy.done is None or copy.done.query():
                events.append(AdapterEvent(AdapterMoveKind.LOAD_DEVICE, copy.move.manifest.digest))
            else:
                still_copying.append(copy)
        self._copying = still_copying
        return tuple(events)

    def modules_of(self, slots: tuple[int, ...]) -> frozenset[TargetModule]:
        """What any of these slots' adapters changes."""
        return frozenset[TargetModule]().union(*(self._modules[slot] for slot in slots))

    def wait(self, timeout: float) -> None:
        """Returns when something may have finished, or after `timeout` seconds."""
        if self._copying:
            return
        wait(self._loading.values(), timeout=timeout, return_when="FIRST_COMPLETED")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start_thread(self) -> None:
        # A thread that runs torch in parallel keeps a team of OpenMP threads of its own, and with more threads than
        # cores every parallel operation of the engine waits 50 us for a sleeper to wake.
        torch.set_num_threads(1)
        self._own.reader = AdapterReader(self._host_blocks, self._pool.dtype)

    def _read(self, manifest: AdapterManifest) -> HostAdapter:
        layout = plan_layout(manifest, self._config.shape, self._config.block_elements)
        reader: AdapterReader = self._own.reader
        read = reader.read(manifest, layout)
        scalars = AdapterScalars.of(manifest.modules, self._config.shape.num_layers)
        return HostAdapter(read.content_digest, layout, scalars, read.block_ids)

    def _collect_read(self, digest: str) -> AdapterEvent:
        read = self._loading.pop(digest)
        try:
            adapter = self._host[digest] = read.result()
        except Exception as error:  # whatever is wrong with a file is its requests' problem, not the engine's
            return AdapterEvent(AdapterMoveKind.LOAD_HOST, digest, error=str(error))
        return AdapterEvent(AdapterMoveKind.LOAD_HOST, digest, content_digest=adapter.content_digest)

    def _drop_host(self, digest: str) -> None:
        if (adapter := self._host.pop(digest, None)) is not None:
            self._host_blocks.give_back(adapter.block_ids)

    def _copy(self, moves: list[AdapterMove]) -> None:
        with self._beside_steps() as stream:
            for move in moves:
                self._copy_one(move)
                done = None if stream is None else stream.record_event()
                self._copying.append(DeviceCopy(move, done))

    def _copy_one(self, move: AdapterMove) -> None:
        adapter = self._host[move.manifest.digest]
        self._host_blocks.copy_to(self._pool, move.block_ids, adapter.block_ids)
        # Nobody looks at the slot's rows before the copy is over.
        rows = slot_rows(adapter.layout, adapter.scalars, move.block_ids, self._pool.shape[1], self.tables)
        tables = (self.tables.a_offsets, self.tables.b_offsets, self.tables.lora_ranks, self.tables.scalings)
        for table, row in zip(tables, rows, strict=True):
            send(row, table[move.slot])
        self._modules[move.slot] = adapter.scalars.modules

    @contextmanager
    def _beside_steps(self) -> Iterator[torch.cuda.Stream | None]:
        if self._side_stream is None:
            yield None
            return
        # Steps already launched may still use what the blocks and slots held before.
        self._side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side_stream):
            yield self._side_stream

    def _clear_slot(self, slot: int) -> None:
        self.tables.lora_ranks[slot].zero_()


def _num_loader_threads(pool: Tensor) -> int:
    """Most of a load is memory traffic and hashing, which leaves the interpreter to the engine. On the CPU the cores
    are the model's."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(MAX_LOADER_THREADS, num_cores // 2)) if pool.is_cuda else 2


def empty_tables(pool: Tensor, num_slots: int, num_layers: int, max_tiles: int, tile: int) -> LoraTables:
    shape = (num_slots, num_layers, len(TargetModule))
    device = pool.device
    return LoraTables(
        pool=pool.view(-1),
        a_offsets=torch.zeros(*shape, max_tiles, dtype=torch.int64, device=device),
        b_offsets=torch.zeros(*shape, max_tiles, dtype=torch.int64, device=device),
        lora_ranks=torch.zeros(shape, dtype=torch.int32, device=device),
        scalings=torch.zeros(shape, dtype=torch.float32, device=device),
        rank_tile=tile,
    )
