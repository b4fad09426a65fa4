"""The two tiers that hold copies of adapters: host memory and the device's block pool. Bookkeeping, and the moves.

`keep`, where taken, names adapters that must not be evicted for the purpose.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from descant_engine.adapter import AdapterManifest
from descant_engine.cache.block_pool import BlockPool
from descant_engine.scheduler.plan import AdapterMove, AdapterMoveKind


class Copy(Enum):
    """State of one tier's copy of an adapter."""

    ABSENT = 0
    LOADING = 1
    READY = 2


@dataclass(slots=True, eq=False)
class Adapter:
    """What is known of a registered adapter. Each field is written by one class of this folder only."""

    manifest: AdapterManifest
    num_blocks: int
    num_users: int = 0
    """Unfinished requests."""
    num_pins: int = 0
    """Running requests."""
    host: Copy = Copy.ABSENT
    device: Copy = Copy.ABSENT
    slot: int = -1
    block_ids: tuple[int, ...] = ()
    idle_since: int = 0
    """The pool's clock when its device copy was last of use."""
    is_removed: bool = False

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def is_loading(self) -> bool:
        return Copy.LOADING in (self.host, self.device)


class HostTier:
    """Copies in host memory, least recently used first out; never one that is being read or copied from."""

    def __init__(self, max_blocks: int, moves: list[AdapterMove]) -> None:
        self.max_blocks = max_blocks
        self._moves = moves
        self._num_blocks = 0
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        """With a copy here, or one on its way, longest unused first."""

    def start_read(self, adapter: Adapter, keep: Collection[str]) -> bool:
        """Begins to read an adapter's file; False, and nothing changes, if there is no room for it."""
        if not self._make_room(adapter.num_blocks, keep):
            return False
        adapter.host = Copy.LOADING
        self._adapters[adapter.digest] = adapter
        self._num_blocks += adapter.num_blocks
        self._moves.append(AdapterMove(AdapterMoveKind.LOAD_HOST, adapter.manifest))
        return True

    def finish_read(self, adapter: Adapter, *, is_ready: bool) -> None:
        if is_ready:
            adapter.host = Copy.READY
            self.touch(adapter)
        else:
            self._release(adapter)

    def touch(self, adapter: Adapter) -> None:
        """The copy was of use just now."""
        self._adapters.move_to_end(adapter.digest)

    def drop(self, adapter: Adapter) -> None:
        self._moves.append(AdapterMove(AdapterMoveKind.DROP_HOST, adapter.manifest))
        self._release(adapter)

    def check_integrity(self, adapters: Collection[Adapter]) -> None:
        """Asserts that exactly those of `adapters` that say so have a copy here."""
        here = [adapter for adapter in adapters if adapter.host is not Copy.ABSENT]
        assert {adapter.digest for adapter in here} == self._adapters.keys()
        assert sum(adapter.num_blocks for adapter in here) == self._num_blocks <= self.max_blocks

    def _make_room(self, count: int, keep: Collection[str]) -> bool:
        missing = self._num_blocks + count - self.max_blocks
        evicted: list[Adapter] = []
        for adapter in self._adapters.values():
            if missing <= 0:
                break
            if not adapter.is_loading and adapter.digest not in keep:
                evicted.append(adapter)
                missing -= adapter.num_blocks
        if missing > 0:
            return False
        for adapter in evicted:
            self.drop(adapter)
        return True

    def _release(self, adapter: Adapter) -> None:
        del self._adapters[adapter.digest]
        self._num_blocks -= adapter.num_blocks
        adapter.host = Copy.ABSENT


class DeviceTier:
    """Copies in the block pool, each under a slot of the runner's tables; those that are not pinned may be evicted."""

    def __init__(self, pool: BlockPool, num_slots: int, moves: list[AdapterMove]) -> None:
        self.num_slots = num_slots
        self.num_loads = 0
        self.num_evictions = 0
        self._pool = pool
        self._moves = moves
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._idle: OrderedDict[str, Adapter] = OrderedDict()
        """Ready and not pinned, longest unused first."""

    def start_copy(self, adapter: Adapter, keep: Collection[str], num_spare_blocks: int) -> bool:
        """Begins to copy an adapter into the pool; False if that would not leave `num_spare_blocks` free."""
        if not self._make_slot_room(keep) or not self.make_room(adapter.num_blocks + num_spare_blocks, keep):
            return False
        adapter.device = Copy.LOADING
        adapter.slot = self._free_slots.pop()
        adapter.block_ids = self._pool.allocate(adapter.num_blocks)
        self._moves.append(AdapterMove(AdapterMoveKind.LOAD_DEVICE, adapter.manifest, adapter.slot, adapter.block_ids))
        return True

    def finish_copy(self, adapter: Adapter, *, is_ready: bool) -> None:
        if is_ready:
            adapter.device = Copy.READY
            self.num_loads += 1
            self._make_idle(adapter)
        else:
            self._release(adapter)

    def pin(self, adapter: Adapter) -> None:
        assert adapter.device is Copy.READY
        adapter.num_pins += 1
        self._idle.pop(adapter.digest, None)

    def unpin(self, adapter: Adapter) -> None:
        adapter.num_pins -= 1
        if adapter.num_pins == 0:
            self._make_idle(adapter)

    def make_room(self, count: int, keep: Collection[str]) -> bool:
        """Sees to it that the pool has `count` free blocks, evicting idle adapters if it must; all or nothing.

        Cached prefixes and idle adapters are equals: of the two, what was not used for longer goes first.
        """
        if count <= self._pool.num_empty_blocks:
            return True
        missing = count - self._pool.num_free_blocks
        if missing > 0 and missing > sum(a.num_blocks for a in self._idle.values() if a.digest not in keep):
            return False
        while (coldest := self._coldest(keep)) is not None:
            if count <= self._pool.num_free_blocks and not self._is_colder_than_prefixes(coldest, count):
                break
            self._evict(coldest)
        return True

    def drop(self, adapter: Adapter) -> None:
        """Takes an idle adapter off the device."""
        del self._idle[adapter.digest]
        self._moves.append(AdapterMove(AdapterMoveKind.DROP_DEVICE, adapter.manifest, adapter.slot, adapter.block_ids))
        self._release(adapter)

    def check_integrity(self, adapters: Collection[Adapter]) -> None:
        """Asserts that exactly those of `adapters` that say so have a slot and blocks."""
        here = [adapter for adapter in adapters if adapter.device is not Copy.ABSENT]
        assert sorted([*(adapter.slot for adapter in here), *self._free_slots]) == list(range(self.num_slots))
        assert {a.digest for a in here if a.device is Copy.READY and a.num_pins == 0} == self._idle.keys()
        for adapter in adapters:
            assert adapter.num_pins == 0 or adapter.device is Copy.READY
            assert adapter.device is not Copy.LOADING or adapter.host is Copy.READY
            assert len(adapter.block_ids) == (0 if adapter.device is Copy.ABSENT else adapter.num_blocks)

    def _make_slot_room(self, keep: Collection[str]) -> bool:
        if not self._free_slots:
            coldest = self._coldest(keep)
            if coldest is None:
                return False
            self._evict(coldest)
        return True

    def _coldest(self, keep: Collection[str]) -> Adapter | None:
        """The idle adapter to evict next: longest unused, but first of all one that no queued request wants."""
        unwanted = (a for a in self._idle.values() if a.num_users == 0 and a.digest not in keep)
        wanted = (a for a in self._idle.values() if a.digest not in keep)
        return next(unwanted, None) or next(wanted, None)

    def _is_colder_than_prefixes(self, adapter: Adapter, count: int) -> bool:
        """Whether taking `count` blocks would cost a cached prefix that was used since the adapter was."""
        if count <= self._pool.num_empty_blocks or adapter.num_users > 0:
            return False
        coldest_prefix = self._pool.coldest_cached_at
        return coldest_prefix is not None and adapter.idle_since < coldest_prefix

    def _evict(self, adapter: Adapter) -> None:
        self.num_evictions += 1
        self.drop(adapter)

    def _make_idle(self, adapter: Adapter) -> None:
        adapter.idle_since = self._pool.clock
        self._idle[adapter.digest] = adapter

    def _release(self, adapter: Adapter) -> None:
        self._pool.release(adapter.block_ids)
        self._free_slots.append(adapter.slot)
        adapter.device, adapter.slot, adapter.block_ids = Copy.ABSENT, -1, ()
