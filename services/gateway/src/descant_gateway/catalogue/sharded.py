"""An immutable mapping that is cheap to change: a changed copy shares all but the shards that were touched."""

from collections.abc import Iterator, Mapping
from typing import Final, Self, TypeVar

NUM_SHARDS: Final = 1024

K = TypeVar("K")
V = TypeVar("V")


class ShardedMap(Mapping[K, V]):
    """One change among n entries copies n / 1024 of them; a look-up is one of a tuple and one of a dict.

    Whoever holds an older copy keeps seeing what was in it.
    """

    __slots__ = ("_len", "_shards")

    def __init__(self, entries: Mapping[K, V]) -> None:
        shards: list[dict[K, V]] = [{} for _ in range(NUM_SHARDS)]
        for key, value in entries.items():
            shards[hash(key) % NUM_SHARDS][key] = value
        self._shards = tuple(shards)
        self._len = len(entries)

    def changed(self, entries: Mapping[K, V], removed: frozenset[K] = frozenset()) -> Self:
        """A copy with `entries` put in and the `removed` keys, as far as they are there, left out."""
        touched = {hash(key) % NUM_SHARDS for key in (*entries, *removed)}
        shards = list(self._shards)
        for index in touched:
            shards[index] = dict(shards[index])
        for key in removed:
            shards[hash(key) % NUM_SHARDS].pop(key, None)
        for key, value in entries.items():
            shards[hash(key) % NUM_SHARDS][key] = value
        copy = type(self).__new__(type(self))
        copy._shards = tuple(shards)
        copy._len = self._len + sum(len(shards[index]) - len(self._shards[index]) for index in touched)
        return copy

    def __getitem__(self, key: K) -> V:
        return self._shards[hash(key) % NUM_SHARDS][key]

    def get(self, key: K, default: V | None = None) -> V | None:  # type: ignore[override]
        return self._shards[hash(key) % NUM_SHARDS].get(key, default)

    def __iter__(self) -> Iterator[K]:
        for shard in self._shards:
            yield from shard

    def __len__(self) -> int:
        return self._len
