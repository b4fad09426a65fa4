"""The bytes of adapters in host memory and in the pool. Does what the plan says, and reports when it is done.

disk -> host: a thread reads the safetensors file, takes its digest and lays its rank tiles out as pool blocks, once.
host -> pool: whole blocks are copied, on CUDA from pinned memory on a side stream; the tables that the LoRA layers
read learn of the slot only when the copy is over.
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from descant_engine.adapter import AdapterManifest, ModuleLora, TargetModule
from descant_engine.adapter_files import check_unchanged, content_digest
from descant_engine.cache.adapter_layout import AdapterLayout, plan_layout, rank_tile
from descant_engine.config import ResolvedConfig
from descant_engine.forward_context import LoraTables
from descant_engine.runner.transfer import to_device
from descant_engine.scheduler.plan import AdapterEvent, AdapterMove, AdapterMoveKind

NUM_LOADER_THREADS = 2


@dataclass(frozen=True, slots=True)
class HostAdapter:
    content_digest: str
    layout: AdapterLayout
    blocks: Tensor
    """[layout.num_blocks, block_elements], pinned on CUDA; exactly what goes into the pool."""


@dataclass(frozen=True, slots=True)
class DeviceCopy:
    move: AdapterMove
    done: torch.cuda.Event | None


class AdapterMemory:
    def __init__(self, config: ResolvedConfig, pool: Tensor, num_slots: int) -> None:
        self._config = config
        self._pool = pool
        self._tile = rank_tile(config.shape, config.block_elements)
        max_tiles = -(-config.user.max_lora_rank // self._tile)
        self.tables = empty_tables(pool, num_slots, config.shape.num_layers, max_tiles, self._tile)
        self._side_stream = torch.cuda.Stream(pool.device) if pool.is_cuda else None
        self._threads = ThreadPoolExecutor(
            NUM_LOADER_THREADS, thread_name_prefix="adapter-loader", initializer=_without_own_team
        )
        self._host: dict[str, HostAdapter] = {}
        self._loading: dict[str, Future[HostAdapter]] = {}
        self._copying: list[DeviceCopy] = []
        self._modules: dict[int, frozenset[TargetModule]] = {}

    def start(self, moves: tuple[AdapterMove, ...]) -> None:
        """Begins every move; none of them waits."""
        for move in moves:
            match move.kind:
                case AdapterMoveKind.LOAD_HOST:
                    self._loading[move.manifest.digest] = self._threads.submit(self._read, move.manifest)
                case AdapterMoveKind.LOAD_DEVICE:
                    self._copying.append(DeviceCopy(move, self._copy_blocks(move)))
                case AdapterMoveKind.DROP_DEVICE:
                    self._clear_slot(move.slot)
                case AdapterMoveKind.DROP_HOST:
                    self._host.pop(move.manifest.digest, None)

    def finished(self) -> tuple[AdapterEvent, ...]:
        """Moves that are over since the last call. Slots become visible to the layers here, between steps."""
        events = [self._collect_read(digest) for digest, read in list(self._loading.items()) if read.done()]
        still_copying = []
        for copy in self._copying:
            if copy.done is None or copy.done.query():
                self._publish_slot(copy.move)
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

    def _read(self, manifest: AdapterManifest) -> HostAdapter:
        layout = plan_layout(manifest, self._config.shape, self._config.block_elements)
        check_unchanged(manifest)
        # Between two looks at an unchanged stamp lies one content, whether it is read or hashed.
        content = manifest.content_digest or content_digest(manifest)
        blocks = read_blocks(manifest, layout, self._pool)
        check_unchanged(manifest)
        return HostAdapter(content, layout, blocks)

    def _collect_read(self, digest: str) -> AdapterEvent:
        read = self._loading.pop(digest)
        try:
            adapter = self._host[digest] = read.result()
        except Exception as error:  # whatever is wrong with a file is its requests' problem, not the engine's
            return AdapterEvent(AdapterMoveKind.LOAD_HOST, digest, error=str(error))
        return AdapterEvent(AdapterMoveKind.LOAD_HOST, digest, content_digest=adapter.content_digest)

    def _copy_blocks(self, move: AdapterMove) -> torch.cuda.Event | None:
        source = self._host[move.manifest.digest].blocks
        if self._side_stream is None:
            self._pool[list(move.block_ids)] = source
            return None
        # Steps already launched may still use the blocks' former content.
        self._side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side_stream):
            for index, first, count in contiguous_runs(move.block_ids):
                self._pool[first : first + count].copy_(source[index : index + count], non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        return done

    def _publish_slot(self, move: AdapterMove) -> None:
        layout = self._host[move.manifest.digest].layout
        rows = slot_rows(move.manifest.modules, layout, move.block_ids, self._pool.shape[1], self.tables)
        for table, row in zip(
            (self.tables.a_offsets, self.tables.b_offsets, self.tables.lora_ranks, self.tables.scalings),
            rows,
            strict=True,
        ):
            table[move.slot] = to_device(row, table.device)
        self._modules[move.slot] = frozenset(module.module for module in move.manifest.modules)

    def _clear_slot(self, slot: int) -> None:
        self.tables.lora_ranks[slot].zero_()


def _without_own_team() -> None:
    """A thread that runs torch in parallel keeps a team of OpenMP threads of its own, and with more threads than cores
    every parallel operation of the engine waits 50 us for a sleeper to wake."""
    torch.set_num_threads(1)


def contiguous_runs(block_ids: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(index in `block_ids`, first block id, count) of each run of neighbours: one copy each."""
    starts = [i for i, block_id in enumerate(block_ids) if i == 0 or block_id != block_ids[i - 1] + 1]
    return [(start, block_ids[start], stop - start) for start, stop in pairwise([*starts, len(block_ids)])]


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


def read_blocks(manifest: AdapterManifest, layout: AdapterLayout, pool: Tensor) -> Tensor:
    """The file's tensors as pool blocks, in the pool's dtype.

    Raises:
        ValueError: a tensor holds NaN or infinity, or overflows the pool's dtype; names file and tensor.
    """
    blocks = torch.zeros(layout.num_blocks, pool.shape[1], dtype=pool.dtype, pin_memory=pool.is_cuda)
    keys = {(module.layer, module.module): module for module in manifest.modules}
    loaded: dict[str, Tensor] = {}
    with safe_open(manifest.path, framework="pt") as file:
        for tile in layout.tiles:
            module = keys[tile.layer, tile.module]
            key = module.lora_a_key if tile.is_lora_a else module.lora_b_key
            if key not in loaded:
                loaded[key] = _rank_rows(
                    file.get_tensor(key), tile.is_lora_a, pool.dtype, f"{manifest.path.name}: {key}"
                )
            first = tile.tile * layout.rank_tile
            target = blocks[tile.block_index, tile.offset : tile.offset + tile.rows * tile.width]
            target.view(tile.rows, tile.width).copy_(loaded[key][first : first + tile.rows])
    return blocks


def _rank_rows(tensor: Tensor, is_lora_a: bool, dtype: torch.dtype, name: str) -> Tensor:
    """[rank, width]: lora_a as it is, lora_b transposed."""
    rows = (tensor if is_lora_a else tensor.T).to(dtype)
    if not torch.isfinite(rows).all():
        raise ValueError(f"{name} holds NaN or infinite values in {dtype}; the adapter is unusable")
    return rows


def slot_rows(
    modules: tuple[ModuleLora, ...],
    layout: AdapterLayout,
    block_ids: tuple[int, ...],
    block_elements: int,
    tables: LoraTables,
) -> tuple[npt.NDArray[Any], ...]:
    """One slot's rows of a_offsets, b_offsets, lora_ranks and scalings, for an adapter that lies in `block_ids`."""
    a_offsets = np.zeros(tables.a_offsets.shape[1:], dtype=np.int64)
    b_offsets = np.zeros_like(a_offsets)
    ranks = np.zeros(tables.lora_ranks.shape[1:], dtype=np.int32)
    scalings = np.zeros(ranks.shape, dtype=np.float32)
    for module in modules:
        ranks[module.layer, module.module] = module.lora_rank
        scalings[module.layer, module.module] = module.scaling
    for tile in layout.tiles:
        offsets = a_offsets if tile.is_lora_a else b_offsets
        offsets[tile.layer, tile.module, tile.tile] = block_ids[tile.block_index] * block_elements + tile.offset
    return a_offsets, b_offsets, ranks, scalings
