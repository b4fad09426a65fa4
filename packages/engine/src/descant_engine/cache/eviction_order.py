"""Who of one tier's adapters goes first; what each is worth is said by `worth`."""

from collections.abc import Collection
from heapq import heapify, heappop, heappush

from descant_engine.cache.adapter_record import Adapter

MIN_ENTRIES = 64
"""Below so many, what has become stale is left where it is."""


class EvictionOrder:
    """Adapters that may be evicted, the least worthy first. Entries go stale in place; they are swept out when they are
    the most, since an order that is only written to, while there is room for all, would grow for ever."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Adapter]] = []
        self._serials: dict[Adapter, int] = {}
        self._num_puts = 0

    def __len__(self) -> int:
        return len(self._serials)

    def __contains__(self, adapter: Adapter) -> bool:
        return adapter in self._serials

    def put(self, adapter: Adapter, worth: float) -> None:
        """Enters it, or gives it a new worth."""
        self._num_puts += 1
        self._serials[adapter] = self._num_puts
        heappush(self._heap, (worth, self._num_puts, adapter))
        if len(self._heap) > max(2 * len(self._serials), MIN_ENTRIES):
            self._heap = [entry for entry in self._heap if self._serials.get(entry[2]) == entry[1]]
            heapify(self._heap)

    def discard(self, adapter: Adapter) -> None:
        self._serials.pop(adapter, None)

    def first(self, keep: Collection[str] = ()) -> tuple[float, Adapter] | None:
        """The least worthy that is not in `keep`, with its worth."""
        kept = []
        found = None
        while found is None and self._heap:
            worth, serial, adapter = self._heap[0]
            if self._serials.get(adapter) != serial:
                heappop(self._heap)
            elif adapter.digest in keep:
                kept.append(heappop(self._heap))
            else:
                found = worth, adapter
        for entry in kept:
            heappush(self._heap, entry)
        return found
