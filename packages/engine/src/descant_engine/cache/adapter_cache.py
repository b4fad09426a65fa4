"""Which adapter is in which tier: registered (its file is known), host memory, device (blocks of the pool and a slot).

Decides; the runner carries the bytes. Every decision becomes an AdapterMove of the next plan, and a load counts once
its event has come back. A device copy comes from a host copy; either may be evicted without the other.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple

from descant_engine.adapter import AdapterManifest
from descant_engine.cache.adapter_layout import plan_layout
from descant_engine.cache.block_pool import BlockPool
from descant_engine.config import ResolvedConfig
from descant_engine.scheduler.plan import AdapterEvent, AdapterMove, AdapterMoveKind


class Copy(Enum):
    """State of one tier's copy of an adapter."""

    ABSENT = 0
    LOADING = 1
    READY = 2


class Readiness(IntEnum):
    """How far an adapter is from serving a request."""

    USABLE = 0
    COPYING = 1
    """Into the pool: milliseconds."""
    READING = 2
    """From its file into host memory: perhaps seconds."""
    NO_HOST_ROOM = 3
    """Host memory is taken by adapters whose requests came earlier."""
    NO_ROOM = 4
    """In the pool: what is in the way belongs to running requests."""


class AdapterTier(Enum):
    REGISTERED = "registered"
    HOST = "host"
    DEVICE = "device"


class AdapterResidency(NamedTuple):
    digest: str
    tier: AdapterTier
    num_requests: int
    """Unfinished requests, waiting or running."""


@dataclass(slots=True, eq=False)
class _Adapter:
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
    def tier(self) -> AdapterTier:
        if self.device is Copy.READY:
            return AdapterTier.DEVICE
        return AdapterTier.HOST if self.host is Copy.READY else AdapterTier.REGISTERED


@dataclass(slots=True)
class AdapterCounts:
    """Since start."""

    num_loads: int = 0
    """Into the pool."""
    num_evictions: int = 0
    """From the pool."""


class AdapterCache:
    """Owns tiers, slots and pins. `keep`, where taken, names adapters that must not be evicted for the purpose."""

    def __init__(self, config: ResolvedConfig, pool: BlockPool, num_slots: int) -> None:
        self._config = config
        self._pool = pool
        self._num_slots = num_slots
        self._adapters: dict[str, _Adapter] = {}
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._idle: OrderedDict[str, _Adapter] = OrderedDict()
        """On the device and not pinned, longest unused first."""
        self._host: OrderedDict[str, _Adapter] = OrderedDict()
        """With a host copy, or one on its way, longest unused first."""
        self._max_host_blocks = config.user.adapter_host_bytes // config.block_bytes
        self._num_host_blocks = 0
        self._moves: list[AdapterMove] = []
        self.counts = AdapterCounts()

    def register(self, manifest: AdapterManifest) -> None:
        """Raises ValueError for an adapter that can never be served; knows a digest it has already."""
        if (known := self._adapters.get(manifest.digest)) is not None:
            known.is_removed = False
            return
        num_blocks = self._required_blocks(manifest)
        self._adapters[manifest.digest] = _Adapter(manifest, num_blocks)

    def remove(self, digest: str) -> None:
        """Takes no new users; forgotten, with its copies, when the last one is gone. Unknown digests are ignored."""
        if (adapter := self._adapters.get(digest)) is not None:
            adapter.is_removed = True
            self._forget_if_unused(adapter)

    def __contains__(self, digest: str) -> bool:
        """Whether new requests may use it."""
        return digest in self._adapters and not self._adapters[digest].is_removed

    def num_blocks(self, digest: str) -> int:
        return self._adapters[digest].num_blocks

    def add_user(self, digest: str) -> None:
        self._adapters[digest].num_users += 1

    def drop_user(self, digest: str) -> None:
        adapter = self._adapters[digest]
        adapter.num_users -= 1
        self._forget_if_unused(adapter)

    def is_usable(self, digest: str) -> bool:
        return self._adapters[digest].device is Copy.READY

    def is_loading(self, digest: str) -> bool:
        """Whether a move of it is under way."""
        adapter = self._adapters[digest]
        return Copy.LOADING in (adapter.host, adapter.device)

    def is_on_host(self, digest: str) -> bool:
        return self._adapters[digest].host is Copy.READY

    def pin(self, digest: str) -> int:
        """Keeps a usable adapter on the device until `unpin`; returns its slot."""
        adapter = self._adapters[digest]
        assert adapter.device is Copy.READY
        adapter.num_pins += 1
        self._idle.pop(digest, None)
        return adapter.slot

    def unpin(self, digest: str) -> None:
        adapter = self._adapters[digest]
        adapter.num_pins -= 1
        if adapter.num_pins == 0:
            self._make_idle(adapter)

    def bring(self, digest: str, keep: Collection[str], num_spare_blocks: int, *, into_pool: bool) -> Readiness:
        """Starts the next move that the adapter needs towards the device, if there is room for it.

        A copy into the pool is only begun if `into_pool`, and if it leaves `num_spare_blocks` free.
        """
        adapter = self._adapters[digest]
        if adapter.device is Copy.READY:
            return Readiness.USABLE
        if adapter.device is Copy.LOADING:
            return Readiness.COPYING
        if adapter.host is Copy.LOADING:
            return Readiness.READING
        if adapter.host is Copy.READY:
            copying = into_pool and self._start_copy(adapter, keep, num_spare_blocks)
            return Readiness.COPYING if copying else Readiness.NO_ROOM
        return Readiness.READING if self._start_read(adapter, keep) else Readiness.NO_HOST_ROOM

    def make_room(self, count: int, keep: Collection[str] = ()) -> bool:
        """Sees to it that the pool has `count` free blocks, evicting idle adapters if it must. All or nothing.

        Cached prefixes and idle adapters are equals: of the two, what was not used for longer goes first.
        """
        if count > self._pool.num_free_blocks:
            evictable = sum(a.num_blocks for a in self._idle.values() if a.digest not in keep)
            if count > self._pool.num_free_blocks + evictable:
                return False
        for adapter in [adapter for adapter in self._idle.values() if adapter.digest not in keep]:
            if count <= self._pool.num_free_blocks and not self._is_colder_than_prefixes(adapter, count):
                break
            self._evict_from_device(adapter)
        return True

    def apply(self, event: AdapterEvent) -> None:
        """Completes a load. After a failed one the adapter is back where it was and may be tried again."""
        adapter = self._adapters[event.digest]
        match event.kind:
            case AdapterMoveKind.LOAD_HOST:
                self._finish_read(adapter, is_ready=event.error is None)
            case AdapterMoveKind.LOAD_DEVICE:
                self._finish_copy(adapter, is_ready=event.error is None)
            case AdapterMoveKind.DROP_DEVICE | AdapterMoveKind.DROP_HOST:
                return
        self._forget_if_unused(adapter)

    def take_moves(self) -> tuple[AdapterMove, ...]:
        """What was decided since the last call, in order."""
        moves = tuple(self._moves)
        self._moves.clear()
        return moves

    @property
    def has_moves(self) -> bool:
        return bool(self._moves)

    def residency(self) -> tuple[AdapterResidency, ...]:
        """Of every registered adapter."""
        return tuple(AdapterResidency(a.digest, a.tier, a.num_users) for a in self._adapters.values())

    def held_blocks(self) -> Iterator[tuple[int, ...]]:
        """Each adapter's blocks of the pool."""
        return (adapter.block_ids for adapter in self._adapters.values())

    def check_integrity(self, num_users: Mapping[str, int], num_pins: Mapping[str, int]) -> None:
        """Asserts that users and pins are as given, and that tiers, slots and lists agree."""
        on_device = [a for a in self._adapters.values() if a.device is not Copy.ABSENT]
        slots = [adapter.slot for adapter in on_device]
        assert sorted(slots + self._free_slots) == list(range(self._num_slots))
        on_host = [a for a in self._adapters.values() if a.host is not Copy.ABSENT]
        assert {adapter.digest for adapter in on_host} == self._host.keys()
        assert sum(adapter.num_blocks for adapter in on_host) == self._num_host_blocks <= self._max_host_blocks
        idle = {a.digest for a in on_device if a.device is Copy.READY and a.num_pins == 0}
        assert idle == self._idle.keys()
        for adapter in self._adapters.values():
            assert adapter.num_users == num_users.get(adapter.digest, 0), f"users of {adapter.digest}"
            assert adapter.num_pins == num_pins.get(adapter.digest, 0), f"pins of {adapter.digest}"
            assert adapter.num_pins == 0 or adapter.device is Copy.READY
            assert adapter.device is not Copy.LOADING or adapter.host is Copy.READY
            assert len(adapter.block_ids) == (adapter.num_blocks if adapter in on_device else 0)

    def _required_blocks(self, manifest: AdapterManifest) -> int:
        limit = self._config.user.max_lora_rank
        if self._num_slots == 0:
            raise ValueError("this engine serves no adapters; start it with enable_lora")
        if manifest.max_lora_rank > limit:
            raise ValueError(f"lora_rank {manifest.max_lora_rank} exceeds max_lora_rank={limit}; raise that limit")
        num_blocks = plan_layout(manifest, self._config.shape, self._config.block_elements).num_blocks
        # One block is needed beside it, for the request that uses it.
        if num_blocks >= self._pool.num_blocks:
            raise ValueError(
                f"the adapter needs {num_blocks} blocks and its request at least one more, but the pool has only "
                f"{self._pool.num_blocks}; give the pool more memory"
            )
        if num_blocks > self._max_host_blocks:
            raise ValueError(
                f"the adapter needs {num_blocks * self._config.block_bytes} bytes of host memory, but "
                f"adapter_host_bytes={self._config.user.adapter_host_bytes}; raise that limit"
            )
        return num_blocks

    def _start_read(self, adapter: _Adapter, keep: Collection[str]) -> bool:
        if not self._make_host_room(adapter.num_blocks, keep):
            return False
        adapter.host = Copy.LOADING
        self._host[adapter.digest] = adapter
        self._num_host_blocks += adapter.num_blocks
        self._moves.append(AdapterMove(AdapterMoveKind.LOAD_HOST, adapter.manifest))
        return True

    def _finish_read(self, adapter: _Adapter, *, is_ready: bool) -> None:
        if is_ready:
            adapter.host = Copy.READY
            self._host.move_to_end(adapter.digest)
        else:
            self._release_host(adapter)

    def _start_copy(self, adapter: _Adapter, keep: Collection[str], num_spare_blocks: int) -> bool:
        if not self._make_slot_room(keep) or not self.make_room(adapter.num_blocks + num_spare_blocks, keep):
            return False
        adapter.device = Copy.LOADING
        adapter.slot = self._free_slots.pop()
        adapter.block_ids = self._pool.allocate(adapter.num_blocks)
        self._host.move_to_end(adapter.digest)
        self._moves.append(AdapterMove(AdapterMoveKind.LOAD_DEVICE, adapter.manifest, adapter.slot, adapter.block_ids))
        return True

    def _finish_copy(self, adapter: _Adapter, *, is_ready: bool) -> None:
        if is_ready:
            adapter.device = Copy.READY
            self.counts.num_loads += 1
            self._make_idle(adapter)
        else:
            self._release_device(adapter)
            self._drop_host(adapter)  # so that the next try reads the file anew

    def _make_idle(self, adapter: _Adapter) -> None:
        adapter.idle_since = self._pool.clock
        self._idle[adapter.digest] = adapter

    def _is_colder_than_prefixes(self, adapter: _Adapter, count: int) -> bool:
        """Whether taking `count` blocks would cost a cached prefix that was used since the adapter was."""
        if count <= self._pool.num_empty_blocks:
            return False
        coldest = self._pool.coldest_cached_at
        return coldest is not None and adapter.idle_since < coldest

    def _make_slot_room(self, keep: Collection[str]) -> bool:
        if not self._free_slots:
            coldest = next((a for a in self._idle.values() if a.digest not in keep), None)
            if coldest is None:
                return False
            self._evict_from_device(coldest)
        return True

    def _make_host_room(self, count: int, keep: Collection[str]) -> bool:
        missing = self._num_host_blocks + count - self._max_host_blocks
        evicted: list[_Adapter] = []
        for adapter in self._host.values():
            if missing <= 0:
                break
            if adapter.host is Copy.READY and adapter.device is not Copy.LOADING and adapter.digest not in keep:
                evicted.append(adapter)
                missing -= adapter.num_blocks
        if missing > 0:
            return False
        for adapter in evicted:
            self._drop_host(adapter)
        return True

    def _evict_from_device(self, adapter: _Adapter) -> None:
        self.counts.num_evictions += 1
        self._drop_device(adapter)

    def _drop_device(self, adapter: _Adapter) -> None:
        del self._idle[adapter.digest]
        self._moves.append(AdapterMove(AdapterMoveKind.DROP_DEVICE, adapter.manifest, adapter.slot, adapter.block_ids))
        self._release_device(adapter)

    def _release_device(self, adapter: _Adapter) -> None:
        self._pool.release(adapter.block_ids)
        self._free_slots.append(adapter.slot)
        adapter.device, adapter.slot, adapter.block_ids = Copy.ABSENT, -1, ()

    def _drop_host(self, adapter: _Adapter) -> None:
        self._moves.append(AdapterMove(AdapterMoveKind.DROP_HOST, adapter.manifest))
        self._release_host(adapter)

    def _release_host(self, adapter: _Adapter) -> None:
        del self._host[adapter.digest]
        self._num_host_blocks -= adapter.num_blocks
        adapter.host = Copy.ABSENT

    def _forget_if_unused(self, adapter: _Adapter) -> None:
        if not adapter.is_removed or adapter.num_users or self.is_loading(adapter.digest):
            return
        if adapter.device is Copy.READY:
            self._drop_device(adapter)
        if adapter.host is Copy.READY:
            self._drop_host(adapter)
        del self._adapters[adapter.digest]
