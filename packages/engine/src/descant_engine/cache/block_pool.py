"""Who holds which block of the pool, and which free block goes next: ids and counts; the bytes are the runner's."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NewType

from descant_engine.cache.worth import PREFIX_COST

BlockHash = NewType("BlockHash", bytes)
"""Identity of a full block's content and of everything before it; see `prefix`."""


class BlockPool:
    """Blocks for KV and for adapters alike, reference-counted.

    A free block may still be cached: it is found by its hash until it is handed out again. The free list is in
    eviction order: blocks without content first, then cached ones, longest unused first.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"the block pool needs at least one block; got {num_blocks}")
        self.num_blocks = num_blocks
        self.age = 0.0
        """Rises to the worth of whatever is evicted, prefix or adapter; see `worth`."""
        self.prefix_reuse = 1.0
        """Which share of prefix tokens is found again; the prefix cache's owner keeps it up to date."""
        self._ref_counts = [0] * num_blocks
        self._empty_free = dict.fromkeys(range(num_blocks))
        self._cached_free: OrderedDict[int, float] = OrderedDict()
        """Block id -> the pool's age when it became free, oldest first."""
        self._block_of: dict[BlockHash, int] = {}
        self._hash_of: dict[int, BlockHash] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self._empty_free) + len(self._cached_free)

    @property
    def num_empty_blocks(self) -> int:
        """Free blocks that hold nothing worth keeping."""
        return len(self._empty_free)

    @property
    def coldest_cached_at(self) -> float | None:
        """The pool's age when the next cached block to be evicted became free; None if there is none."""
        return next(iter(self._cached_free.values()), None)

    def allocate(self, count: int) -> tuple[int, ...]:
        """Takes `count` blocks, each with one reference, evicting cached ones as needed.

        Raises:
            ValueError: fewer than `count` are free; ask `num_free_blocks` first.
        """
        if count > self.num_free_blocks:
            raise ValueError(f"{count} blocks asked of a pool with {self.num_free_blocks} free")
        return tuple(self._take_next() for _ in range(count))

    def find(self, block_hash: BlockHash) -> int | None:
        """The block with this content, free or held."""
        return self._block_of.get(block_hash)

    def acquire(self, block_id: int) -> None:
        """One more reference to a block that `find` returned."""
        if self._ref_counts[block_id] == 0:
            del self._cached_free[block_id]
        self._ref_counts[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """One reference less each. What becomes free first is evicted first, so give a chain from its tail."""
        for block_id in block_ids:
            if self._ref_counts[block_id] < 1:
                raise ValueError(f"block {block_id} was released more often than acquired")
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._add_free(block_id)

    def cache(self, block_id: int, block_hash: BlockHash) -> None:
        """Makes a held block findable. Of two blocks with equal content the first stays the one that is found."""
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block_id
            self._hash_of[block_id] = block_hash

    def check_integrity(self, num_holders: Mapping[int, int]) -> None:
        """Asserts that reference counts equal `num_holders` (block id -> holders) and that the lists agree."""
        expected = [num_holders.get(block_id, 0) for block_id in range(self.num_blocks)]
        assert self._ref_counts == expected, f"reference counts {self._ref_counts} but holders {expected}"
        free = {block_id for block_id, count in enumerate(self._ref_counts) if count == 0}
        assert free == self._empty_free.keys() | self._cached_free.keys()
        assert not self._empty_free.keys() & self._hash_of.keys()
        assert self._cached_free.keys() <= self._hash_of.keys()
        assert {block_id: block_hash for block_hash, block_id in self._block_of.items()} == self._hash_of
        ages = list(self._cached_free.values())
        assert ages == sorted(ages)

    def _take_next(self) -> int:
        if self._empty_free:
            block_id, _ = self._empty_free.popitem()
        else:
            block_id, freed_at = self._cached_free.popitem(last=False)
            self.age = max(self.age, freed_at + PREFIX_COST)
            del self._block_of[self._hash_of.pop(block_id)]
        self._ref_counts[block_id] = 1
        return block_id

    def _add_free(self, block_id: int) -> None:
        if block_id in self._hash_of:
            self._cached_free[block_id] = self.age
        else:
            self._empty_free[block_id] = None


def count_holders(holdings: Iterable[Sequence[int]]) -> dict[int, int]:
    """Block id -> how many of `holdings` contain it."""
    holders: dict[int, int] = {}
    for block_ids in holdings:
        for block_id in block_ids:
            holders[block_id] = holders.get(block_id, 0) + 1
    return holders
