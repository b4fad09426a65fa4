"""Which adapter is in which tier: registered (its file is known), host memory, device (blocks of the pool and a slot).

Decides; the runner carries the bytes. Every decision becomes an AdapterMove of the next plan, and a load counts once
its event has come back. A device copy comes from a host copy; either may be evicted without the other.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from enum import Enum, IntEnum
from typing import NamedTuple

from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.cache.adapter_layout import plan_layout
from descant_engine.cache.adapter_record import Adapter, Copy
from descant_engine.cache.adapter_tiers import DeviceTier, HostTier
from descant_engine.cache.block_pool import BlockPool
from descant_engine.config import ResolvedConfig
from descant_engine.scheduler.plan import AdapterEvent, AdapterMove, AdapterMoveKind

MAX_READ_BYTES = 1 << 30
"""Being read at once. Decisions are taken once a step, and a step with prompts takes long enough for a gigabyte."""
MAX_COPY_BYTES = 512 << 20
"""On the way into the pool at once: ten milliseconds of the bus, behind which a step's own inputs would wait."""


class Readiness(IntEnum):
    """How far an adapter is from serving a request."""

    USABLE = 0
    COPYING = 1
    """Into the pool: milliseconds."""
    READING = 2
    """From its file into host memory: perhaps seconds."""
    IN_LINE = 3
    """Until other loads are over."""
    NO_HOST_ROOM = 4
    """Host memory is taken by adapters whose requests came earlier."""
    NO_ROOM = 5
    """In the pool: what is in the way belongs to running requests, or to requests that came earlier."""
    NO_SLOT = 6
    """All are adapters' of running requests, or of requests that came earlier; requests to the base take none."""


class AdapterTier(Enum):
    REGISTERED = "registered"
    HOST = "host"
    DEVICE = "device"


class AdapterResidency(NamedTuple):
    digest: str
    tier: AdapterTier
    """The highest that it is in."""
    num_requests: int
    """Unfinished requests, waiting or running."""


class AdapterCache:
    """Owns registrations, users and the way up through the tiers."""

    def __init__(self, config: ResolvedConfig, pool: BlockPool, num_slots: int) -> None:
        self._config = config
        self._pool = pool
        self._adapters: dict[str, Adapter] = {}
        self._moves: list[AdapterMove] = []
        self._host = HostTier(config.user.adapter_host_bytes // config.block_bytes, self._moves)
        self._device = DeviceTier(pool, num_slots, self._moves)
        self._max_read_blocks = MAX_READ_BYTES // config.block_bytes
        self._max_copy_blocks = MAX_COPY_BYTES // config.block_bytes

    def __contains__(self, digest: str) -> bool:
        """Whether new requests may use it."""
        return digest in self._adapters and not self._adapters[digest].is_removed

    @property
    def num_loads(self) -> int:
        """Into the pool, since start."""
        return self._device.num_loads

    @property
    def num_evictions(self) -> int:
        """From the pool, since start."""
        return self._device.num_evictions

    def register(self, manifest: AdapterManifest) -> None:
        """Raises ValueError for an adapter that can never be served. One that is known already stays what it is."""
        if (known := self._adapters.get(manifest.digest)) is not None:
            known.is_removed = False
        else:
            self._adapters[manifest.digest] = Adapter(manifest, self._required_blocks(manifest))

    def remove(self, digest: str) -> None:
        """Takes no new users; forgotten, with its copies, when the last one is gone. Unknown digests are ignored."""
        if (adapter := self._adapters.get(digest)) is not None:
            adapter.is_removed = True
            self._forget_if_unused(adapter)

    def add_user(self, digest: str) -> None:
        self._device.change_users(self._adapters[digest], 1)

    def drop_user(self, digest: str) -> None:
        adapter = self._adapters[digest]
        self._device.change_users(adapter, -1)
        self._forget_if_unused(adapter)

    def num_blocks(self, digest: str) -> int:
        return self._adapters[digest].num_blocks

    def content_digest(self, digest: str) -> str:
        """The identity of an adapter that has been read."""
        content = self._adapters[digest].manifest.content_digest
        assert content is not None, "nobody knows what is in an adapter before its weights have been read"
        return content

    def is_usable(self, digest: str) -> bool:
        return self._adapters[digest].device is Copy.READY

    def pin(self, digest: str) -> int:
        """Keeps a usable adapter on the device until `unpin`; returns its slot."""
        adapter = self._adapters[digest]
        self._device.pin(adapter)
        return adapter.slot

    def unpin(self, digest: str) -> None:
        self._device.unpin(self._adapters[digest])

    def make_room(self, count: int, spared: str | None = None) -> bool:
        """Sees to it that the pool has `count` free blocks, if that is possible without `spared` and what is pinned."""
        return self._device.make_room(count, None if spared is None else self._adapters[spared])

    def bring(
        self,
        digest: str,
        keep: Collection[str],
        num_spare_blocks: int,
        *,
        into_pool: bool = True,
        evict_wanted: bool = False,
    ) -> Readiness:
        """Starts the next move that the adapter needs towards the device, if there is room for it.

        A copy into the pool is only begun if `into_pool`, and if it leaves `num_spare_blocks` free. In host memory
        nothing in `keep` gives way to it, in the pool nothing that requests want unless `evict_wanted`.
        """
        adapter = self._adapters[digest]
        if adapter.device is Copy.READY:
            return Readiness.USABLE
        if adapter.device is Copy.LOADING:
            return Readiness.COPYING
        if adapter.host is Copy.LOADING:
            return Readiness.READING
        if adapter.host is Copy.ABSENT:
            return self._read(adapter, keep)
        if _is_too_much(self._device.num_copying_blocks, adapter, self._max_copy_blocks):
            return Readiness.IN_LINE
        if not into_pool:
            return Readiness.NO_ROOM
        if not self._device.make_slot_room(evict_wanted):
            return Readiness.NO_SLOT
        if not self._device.start_copy(adapter, num_spare_blocks, evict_wanted=evict_wanted):
            return Readiness.NO_ROOM
        self._host.touch(adapter, self._device.clock)
        return Readiness.COPYING

    def _read(self, adapter: Adapter, keep: Collection[str]) -> Readiness:
        if _is_too_much(self._host.num_reading_blocks, adapter, self._max_read_blocks):
            return Readiness.IN_LINE
        return Readiness.READING if self._host.start_read(adapter, keep) else Readiness.NO_HOST_ROOM

    def apply(self, event: AdapterEvent) -> None:
        """Completes a load. After a failed one the adapter is only registered, and the next try reads its file anew."""
        adapter = self._adapters[event.digest]
        is_ready = event.error is None
        match event.kind:
            case AdapterMoveKind.LOAD_HOST:
                self._host.finish_read(adapter, self._device.clock, is_ready=is_ready)
                if is_ready:
                    adapter.manifest = replace(adapter.manifest, content_digest=event.content_digest)
            case AdapterMoveKind.LOAD_DEVICE:
                self._device.finish_copy(adapter, is_ready=is_ready)
                if not is_ready:
                    self._host.drop(adapter)
            case AdapterMoveKind.DROP_DEVICE | AdapterMoveKind.DROP_HOST:
                return
        self._forget_if_unused(adapter)

    def take_moves(self) -> tuple[AdapterMove, ...]:
        """What was decided since the last call, in order."""
        moves = tuple(self._moves)
        self._moves.clear()
        return moves

    def take_displaced(self) -> list[str]:
        """Adapters evicted since the last call although requests want them."""
        displaced = [adapter.digest for adapter in self._device.displaced]
        self._device.displaced.clear()
        return displaced

    def residency(self) -> tuple[AdapterResidency, ...]:
        """Of every registered adapter."""
        return tuple(AdapterResidency(a.digest, _tier(a), a.num_users) for a in self._adapters.values())

    def held_blocks(self) -> Iterator[tuple[int, ...]]:
        """Each adapter's blocks of the pool."""
        return (adapter.block_ids for adapter in self._adapters.values())

    def check_integrity(self, num_users: Mapping[str, int], num_pins: Mapping[str, int]) -> None:
        """Asserts that users and pins are as given, and that the tiers agree with what each adapter says."""
        adapters = self._adapters.values()
        self._host.check_integrity(adapters)
        self._device.check_integrity(adapters)
        for adapter in adapters:
            assert adapter.num_users == num_users.get(adapter.digest, 0), f"users of {adapter.digest}"
            assert adapter.num_pins == num_pins.get(adapter.digest, 0), f"pins of {adapter.digest}"
            assert not adapter.is_removed or adapter.num_users or adapter.is_loading, "a removed adapter lives on"

    def _required_blocks(self, manifest: AdapterManifest) -> int:
        limit, config = self._config.user.max_lora_rank, self._config
        if self._device.num_slots == 0:
            raise ValueError("this engine serves no adapters; start it with enable_lora")
        if manifest.max_lora_rank > limit:
            raise ValueError(f"lora_rank {manifest.max_lora_rank} exceeds max_lora_rank={limit}; raise that limit")
        num_blocks = plan_layout(manifest, config.shape, config.block_elements).num_blocks
        # One block is needed beside it, for the request that uses it.
        if num_blocks >= self._pool.num_blocks:
            raise ValueError(
                f"the adapter needs {num_blocks} blocks and its request at least one more, but the pool has only "
                f"{self._pool.num_blocks}; give the pool more memory"
            )
        if num_blocks > self._host.max_blocks:
            raise ValueError(
                f"the adapter needs {num_blocks * config.block_bytes} bytes of host memory, but "
                f"adapter_host_bytes={config.user.adapter_host_bytes}; raise that limit"
            )
        return num_blocks

    def _forget_if_unused(self, adapter: Adapter) -> None:
        if not adapter.is_removed or adapter.num_users or adapter.is_loading:
            return
        if adapter.device is Copy.READY:
            self._device.drop(adapter)
        if adapter.host is Copy.READY:
            self._host.drop(adapter)
        del self._adapters[adapter.digest]


def _is_too_much(num_blocks_under_way: int, adapter: Adapter, limit: int) -> bool:
    """One is always allowed, however large."""
    return num_blocks_under_way > 0 and num_blocks_under_way + adapter.num_blocks > limit


def _tier(adapter: Adapter) -> AdapterTier:
    if adapter.device is Copy.READY:
        return AdapterTier.DEVICE
    return AdapterTier.HOST if adapter.host is Copy.READY else AdapterTier.REGISTERED
