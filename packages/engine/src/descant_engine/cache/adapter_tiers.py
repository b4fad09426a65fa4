"""The two tiers that hold copies of adapters: host memory and the device's block pool. Bookkeeping, and the moves.

`keep`, where taken, names adapters that must not be evicted for the purpose.
"""

from collections.abc import Collection

from descant_engine.cache.adapter_record import Adapter, Copy
from descant_engine.cache.block_pool import BlockPool
from descant_engine.cache.eviction_order import EvictionOrder
from descant_engine.cache.worth import COPY_COST, PREFIX_COST, READ_COST, adapter_worth
from descant_engine.scheduler.plan import AdapterMove, AdapterMoveKind


class HostTier:
    """Copies in host memory, the least worthy first out; never one that is being read or copied from."""

    def __init__(self, max_blocks: int, moves: list[AdapterMove]) -> None:
        self.max_blocks = max_blocks
        self.num_reading_blocks = 0
        """Of reads under way."""
        self._moves = moves
        self._num_blocks = 0
        self._age = 0.0
        self._order = EvictionOrder()
        """All that have a copy here, or one on its way."""

    def start_read(self, adapter: Adapter, keep: Collection[str]) -> bool:
        """Begins to read an adapter's file; False, and nothing changes, if there is no room for it."""
        if not self._make_room(adapter.num_blocks, keep):
            return False
        adapter.host = Copy.LOADING
        self.num_reading_blocks += adapter.num_blocks
        self._num_blocks += adapter.num_blocks
        self._order.put(adapter, self._age)
        self._moves.append(AdapterMove(AdapterMoveKind.LOAD_HOST, adapter.manifest))
        return True

    def finish_read(self, adapter: Adapter, clock: int, *, is_ready: bool) -> None:
        self.num_reading_blocks -= adapter.num_blocks
        if is_ready:
            adapter.host = Copy.READY
            self.touch(adapter, clock)
        else:
            self._release(adapter)

    def touch(self, adapter: Adapter, clock: int) -> None:
        """The copy was of use just now."""
        if adapter.host is Copy.READY:
            self._order.put(adapter, adapter_worth(self._age, adapter.popularity.at(clock), READ_COST))

    def drop(self, adapter: Adapter) -> None:
        self._moves.append(AdapterMove(AdapterMoveKind.DROP_HOST, adapter.manifest))
        self._release(adapter)

    def check_integrity(self, adapters: Collection[Adapter]) -> None:
        """Asserts that exactly those of `adapters` that say so have a copy here."""
        here = [adapter for adapter in adapters if adapter.host is not Copy.ABSENT]
        assert len(here) == len(self._order)
        assert all(adapter in self._order for adapter in here)
        assert sum(adapter.num_blocks for adapter in here) == self._num_blocks <= self.max_blocks
        assert sum(adapter.num_blocks for adapter in here if adapter.host is Copy.LOADING) == self.num_reading_blocks

    def _make_room(self, count: int, keep: Collection[str]) -> bool:
        missing = self._num_blocks + count - self.max_blocks
        chosen: dict[str, tuple[float, Adapter]] = {}
        spared = set(keep)
        while missing > 0 and (least := self._order.first(spared)) is not None:
            _, adapter = least
            spared.add(adapter.digest)
            if not adapter.is_loading:
                chosen[adapter.digest] = least
                missing -= adapter.num_blocks
        if missing > 0:
            return False
        for worth, adapter in chosen.values():
            self._age = max(self._age, worth)
            self.drop(adapter)
        return True

    def _release(self, adapter: Adapter) -> None:
        self._order.discard(adapter)
        self._num_blocks -= adapter.num_blocks
        adapter.host = Copy.ABSENT


class DeviceTier:
    """Copies in the block pool, each under a slot of the runner's tables; those that are not pinned may be evicted.

    An adapter that somebody waits for gives way only to tokens, and to requests that were overtaken for too long.
    """

    def __init__(self, pool: BlockPool, num_slots: int, moves: list[AdapterMove]) -> None:
        self.num_slots = num_slots
        self.num_copying_blocks = 0
        """Of copies under way."""
        self.num_loads = 0
        self.num_evictions = 0
        self.clock = 0
        """Ticks with every use of an adapter."""
        self.displaced: list[Adapter] = []
        """Evicted although requests want them, since the owner looked last."""
        self._pool = pool
        self._moves = moves
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._unwanted = EvictionOrder()
        """Idle ones, which are ready and not pinned: without users, ..."""
        self._wanted = EvictionOrder()
        """... and with."""
        self._num_unwanted_blocks = 0
        self._num_wanted_blocks = 0

    def make_slot_room(self, evict_wanted: bool) -> bool:
        """Sees to it that a slot is free, evicting an idle adapter if it must."""
        if not self._free_slots:
            least = self._least_worthy((), evict_wanted)
            if least is None:
                return False
            self._evict(*least)
        return True

    def start_copy(self, adapter: Adapter, num_spare_blocks: int, *, evict_wanted: bool) -> bool:
        """Begins to copy an adapter into the pool, under a free slot; False if that would not leave `num_spare_blocks`
        free."""
        if not self.make_room(adapter.num_blocks + num_spare_blocks, None, evict_wanted=evict_wanted):
            return False
        adapter.device = Copy.LOADING
        adapter.slot = self._free_slots.pop()
        # Neighbours in the pool are copied as one.
        adapter.block_ids = tuple(sorted(self._pool.allocate(adapter.num_blocks)))
        self.num_copying_blocks += adapter.num_blocks
        self._moves.append(AdapterMove(AdapterMoveKind.LOAD_DEVICE, adapter.manifest, adapter.slot, adapter.block_ids))
        return True

    def finish_copy(self, adapter: Adapter, *, is_ready: bool) -> None:
        self.num_copying_blocks -= adapter.num_blocks
        if is_ready:
            adapter.device = Copy.READY
            self.num_loads += 1
            self._make_idle(adapter)
        else:
            self._release(adapter)

    def pin(self, adapter: Adapter) -> None:
        assert adapter.device is Copy.READY
        if adapter.num_pins == 0:
            self._take_idle(adapter)
        adapter.num_pins += 1
        self.clock += 1
        adapter.popularity.use(self.clock)

    def unpin(self, adapter: Adapter) -> None:
        adapter.num_pins -= 1
        if adapter.num_pins == 0:
            self._make_idle(adapter)

    def change_users(self, adapter: Adapter, difference: int) -> None:
        """One more or one less request, waiting or running, wants it."""
        is_idle = self._is_idle(adapter)
        if is_idle:
            self._take_idle(adapter)
        adapter.num_users += difference
        if is_idle:
            self._make_idle(adapter)

    def make_room(self, count: int, spared: Adapter | None, *, evict_wanted: bool = True) -> bool:
        """Sees to it that the pool has `count` free blocks, evicting idle adapters but `spared` if it must; all or
        nothing.

        Between cached prefixes and adapters that nobody wants, worth decides.
        """
        if count <= self._pool.num_empty_blocks:
            return True
        missing = count - self._pool.num_free_blocks
        if missing > 0 and missing > self._num_evictable_blocks(spared, evict_wanted):
            return False
        keep = () if spared is None else (spared.digest,)
        while (least := self._unwanted.first(keep)) is not None and self._goes_before_prefixes(least[0], count):
            self._evict(*least)
        while count > self._pool.num_free_blocks and (least := self._least_worthy(keep, evict_wanted)) is not None:
            self._evict(*least)
        return True

    def drop(self, adapter: Adapter) -> None:
        """Takes an idle adapter off the device."""
        self._take_idle(adapter)
        self._moves.append(AdapterMove(AdapterMoveKind.DROP_DEVICE, adapter.manifest, adapter.slot, adapter.block_ids))
        self._release(adapter)

    def check_integrity(self, adapters: Collection[Adapter]) -> None:
        """Asserts that exactly those of `adapters` that say so have a slot and blocks."""
        here = [adapter for adapter in adapters if adapter.device is not Copy.ABSENT]
        assert sorted([*(adapter.slot for adapter in here), *self._free_slots]) == list(range(self.num_slots))
        idle = [adapter for adapter in here if self._is_idle(adapter)]
        assert len(idle) == len(self._unwanted) + len(self._wanted)
        assert all(adapter in self._idle_like(adapter) for adapter in idle)
        assert self._num_wanted_blocks == sum(a.num_blocks for a in idle if a.num_users)
        assert self._num_unwanted_blocks == sum(a.num_blocks for a in idle if not a.num_users)
        assert sum(a.num_blocks for a in here if a.device is Copy.LOADING) == self.num_copying_blocks
        for adapter in adapters:
            assert adapter.num_pins == 0 or adapter.device is Copy.READY
            assert adapter.device is not Copy.LOADING or adapter.host is Copy.READY
            assert len(adapter.block_ids) == (0 if adapter.device is Copy.ABSENT else adapter.num_blocks)

    def _num_evictable_blocks(self, spared: Adapter | None, evict_wanted: bool) -> int:
        count = self._num_unwanted_blocks + (self._num_wanted_blocks if evict_wanted else 0)
        if spared is not None and self._is_idle(spared) and (evict_wanted or spared.num_users == 0):
            count -= spared.num_blocks
        return count

    def _least_worthy(self, keep: Collection[str], evict_wanted: bool) -> tuple[float, Adapter] | None:
        """First of all one that no request wants."""
        return self._unwanted.first(keep) or (self._wanted.first(keep) if evict_wanted else None)

    def _goes_before_prefixes(self, worth: float, count: int) -> bool:
        """Whether taking `count` blocks would cost a cached prefix that is worth more."""
        if count <= self._pool.num_empty_blocks:
            return False
        coldest_prefix = self._pool.coldest_cached_at
        return coldest_prefix is not None and worth < coldest_prefix + PREFIX_COST

    def _evict(self, worth: float, adapter: Adapter) -> None:
        self.num_evictions += 1
        self._pool.age = max(self._pool.age, worth)
        if adapter.num_users > 0:
            self.displaced.append(adapter)
        self.drop(adapter)

    def _is_idle(self, adapter: Adapter) -> bool:
        return adapter.device is Copy.READY and adapter.num_pins == 0

    def _idle_like(self, adapter: Adapter) -> EvictionOrder:
        return self._wanted if adapter.num_users else self._unwanted

    def _make_idle(self, adapter: Adapter) -> None:
        cost = COPY_COST if adapter.host is Copy.READY else READ_COST
        popularity = adapter.popularity.at(self.clock)
        worth = adapter_worth(self._pool.age, popularity, cost, self._pool.prefix_reuse)
        self._idle_like(adapter).put(adapter, worth)
        self._count_idle_blocks(adapter, adapter.num_blocks)

    def _take_idle(self, adapter: Adapter) -> None:
        self._idle_like(adapter).discard(adapter)
        self._count_idle_blocks(adapter, -adapter.num_blocks)

    def _count_idle_blocks(self, adapter: Adapter, difference: int) -> None:
        if adapter.num_users:
            self._num_wanted_blocks += difference
        else:
            self._num_unwanted_blocks += difference

    def _release(self, adapter: Adapter) -> None:
        self._pool.release(adapter.block_ids)
        self._free_slots.append(adapter.slot)
        adapter.device, adapter.slot, adapter.block_ids = Copy.ABSENT, -1, ()
