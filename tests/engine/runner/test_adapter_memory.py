"""Adapters on their way from files into the pool, by the moves of plans."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from descant_engine.adapters.manifest import AdapterManifest, TargetModule
from descant_engine.cache.adapter_layout import TilePlacement, plan_layout
from descant_engine.config import Device, ResolvedConfig
from descant_engine.runner.adapter_memory import AdapterMemory
from descant_engine.scheduler.plan import AdapterEvent, AdapterMove, AdapterMoveKind

NUM_BLOCKS, NUM_SLOTS = 24, 3
Q, DOWN = TargetModule.Q_PROJ, TargetModule.DOWN_PROJ


class Memory:
    def __init__(self, config: ResolvedConfig) -> None:
        self.config = config
        self.pool = torch.zeros(NUM_BLOCKS, config.block_elements, dtype=torch.bfloat16, device=config.device)
        self.adapters = AdapterMemory(config, self.pool, NUM_SLOTS)

    def carry_out(self, *moves: AdapterMove) -> list[AdapterEvent]:
        """The moves' events, once they are over."""
        self.adapters.start(moves)
        events: list[AdapterEvent] = []
        expected = sum(move.kind in (AdapterMoveKind.LOAD_HOST, AdapterMoveKind.LOAD_DEVICE) for move in moves)
        deadline = time.monotonic() + 20
        while len(events) < expected:
            assert time.monotonic() < deadline
            self.adapters.wait(0.01)
            events += self.adapters.finished()
        return events

    def load(self, manifest: AdapterManifest, slot: int, block_ids: tuple[int, ...]) -> None:
        for kind in (AdapterMoveKind.LOAD_HOST, AdapterMoveKind.LOAD_DEVICE):
            (event,) = self.carry_out(AdapterMove(kind, manifest, slot, block_ids))
            assert (event.kind, event.digest, event.error) == (kind, manifest.digest, None)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def memory(request: pytest.FixtureRequest, config_of: Callable[..., ResolvedConfig]) -> Iterator[Memory]:
    device: Device = request.param
    memory = Memory(config_of(device))
    yield memory
    memory.adapters.close()


def _check(memory: Memory, manifest: AdapterManifest, slot: int, assert_tiles: Callable[..., None]) -> None:
    tables = memory.adapters.tables
    layout = plan_layout(manifest, memory.config.shape, memory.config.block_elements)

    def tile_at(tile: TilePlacement) -> torch.Tensor:
        offsets = tables.a_offsets if tile.is_lora_a else tables.b_offsets
        offset = int(offsets[slot, tile.layer, tile.module, tile.tile])
        return tables.pool[offset : offset + tile.rows * tile.width]

    assert_tiles(manifest, layout, tile_at)
    adapted = {(module.layer, module.module): module for module in manifest.modules}
    for layer in range(memory.config.shape.num_layers):
        for module in TargetModule:
            lora = adapted.get((layer, module))
            assert int(tables.lora_ranks[slot, layer, module]) == (lora.lora_rank if lora else 0)
            if lora is not None:
                assert float(tables.scalings[slot, layer, module]) == lora.scaling


def test_tables_lead_to_the_tiles_of_each_slots_adapter(
    memory: Memory,
    save_adapter_file: Callable[..., AdapterManifest],
    assert_tiles: Callable[..., None],
    tmp_path: Path,
) -> None:
    first = save_adapter_file(tmp_path / "first", {Q: 20, DOWN: 3})
    second = save_adapter_file(tmp_path / "second", {Q: 7}, seed=1)
    sizes = [
        plan_layout(manifest, memory.config.shape, memory.config.block_elements).num_blocks
        for manifest in (first, second)
    ]
    scattered = tuple(range(0, 2 * sizes[0], 2))
    memory.load(first, 2, scattered)
    memory.load(second, 0, tuple(range(1, 2 * sizes[1], 2)))
    _check(memory, first, 2, assert_tiles)
    _check(memory, second, 0, assert_tiles)
    assert memory.adapters.modules_of((0, 2)) == {Q, DOWN}
    assert memory.adapters.modules_of((0,)) == {Q}


def test_blocks_and_a_slot_go_from_one_adapter_to_another_in_one_plan(
    memory: Memory,
    save_adapter_file: Callable[..., AdapterManifest],
    assert_tiles: Callable[..., None],
    tmp_path: Path,
) -> None:
    first, second = (save_adapter_file(tmp_path / f"{seed}", {Q: 9, DOWN: 3}, seed=seed) for seed in range(2))
    block_ids = tuple(range(plan_layout(first, memory.config.shape, memory.config.block_elements).num_blocks))
    memory.load(first, 1, block_ids)
    memory.carry_out(AdapterMove(AdapterMoveKind.LOAD_HOST, second))
    memory.carry_out(
        AdapterMove(AdapterMoveKind.DROP_DEVICE, first, 1, block_ids),
        AdapterMove(AdapterMoveKind.DROP_HOST, first),
        AdapterMove(AdapterMoveKind.LOAD_DEVICE, second, 1, block_ids),
    )
    _check(memory, second, 1, assert_tiles)
    memory.carry_out(AdapterMove(AdapterMoveKind.LOAD_HOST, first))
    _check(memory, second, 1, assert_tiles)


def test_a_broken_file_is_an_event_and_harms_nobody(
    memory: Memory,
    save_adapter_file: Callable[..., AdapterManifest],
    assert_tiles: Callable[..., None],
    tmp_path: Path,
) -> None:
    good = save_adapter_file(tmp_path / "good", {Q: 4})
    broken, missing = (save_adapter_file(tmp_path / name, {Q: 4}) for name in ("broken", "missing"))
    broken.path.write_bytes(broken.path.read_bytes()[:-1])
    missing.path.unlink()
    loads = [AdapterMove(AdapterMoveKind.LOAD_HOST, manifest) for manifest in (broken, good, missing)]
    events = {event.digest: event for event in memory.carry_out(*loads)}
    assert "broken" in str(events["broken"].error)
    assert "missing" in str(events["missing"].error)
    assert events["good"].error is None
    memory.carry_out(AdapterMove(AdapterMoveKind.LOAD_DEVICE, good, 0, tuple(range(16))[: _num_blocks(memory, good)]))
    _check(memory, good, 0, assert_tiles)


def _num_blocks(memory: Memory, manifest: AdapterManifest) -> int:
    return plan_layout(manifest, memory.config.shape, memory.config.block_elements).num_blocks
