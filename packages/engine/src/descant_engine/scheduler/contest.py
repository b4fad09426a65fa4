"""Whose turn it is among those who wait, by the counters of their shares."""

from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Generic, Protocol, TypeVar

from descant_engine.request import Request
from descant_engine.share import Share


class Entrant(Protocol):
    @property
    def share(self) -> Share: ...

    @property
    def front(self) -> Request | None:
        """Whom it would send; None if nobody."""


EntrantT = TypeVar("EntrantT", bound=Entrant)


class Contest(Generic[EntrantT]):
    """Finds the entrant with the smallest counter, among equals the one whose request came first.

    Ranks only rise, so an entry's place is an early guess: it is put right when the entry comes up.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, EntrantT]] = []
        self._entries = count()
        """Tell entries apart that nothing else does: of a line that was closed, and of its successor."""
        self._current: dict[EntrantT, tuple[int, int, int]] = {}
        """Each entrant's only valid entry; one that entered with somebody who came earlier has others in the heap."""

    def __len__(self) -> int:
        """Entries, valid or not."""
        return len(self._heap)

    def enter(self, entrant: EntrantT) -> None:
        """To be called whenever an entrant has somebody to send again, or somebody who came earlier."""
        if (request := entrant.front) is None:
            return
        current, rank = self._current.get(entrant), entrant.share.rank
        if current is None or (rank, request.arrival_number) < current[:2]:
            entry = self._current[entrant] = rank, request.arrival_number, next(self._entries)
            heappush(self._heap, (*entry, entrant))

    def first(self) -> EntrantT | None:
        heap = self._heap
        while heap:
            rank, arrival_number, entry, entrant = heap[0]
            request = entrant.front
            if self._current.get(entrant) != (rank, arrival_number, entry):
                heappop(heap)
            elif request is None:
                heappop(heap)
                del self._current[entrant]
            elif (rank, arrival_number) != (entrant.share.rank, request.arrival_number):
                now = self._current[entrant] = entrant.share.rank, request.arrival_number, entry
                heapreplace(heap, (*now, entrant))
            else:
                return entrant
        return None
