"""The running requests, and what each of them holds besides its blocks."""

from collections.abc import Iterator

from descant_engine.cache.adapter_cache import AdapterCache
from descant_engine.cache.kv_cache import KvCache
from descant_engine.request import Request
from descant_engine.scheduler.precedence import Precedence
from descant_engine.scheduler.queue import OrderedRequests


class Batch:
    """In the order of service. Whoever is in it has a row of the runner's and a pin on its adapter."""

    def __init__(self, kv: KvCache, adapters: AdapterCache, precedence: Precedence, block_size: int) -> None:
        self.requests = OrderedRequests()
        self._kv = kv
        self._adapters = adapters
        self._precedence = precedence
        self._block_size = block_size
        self._removed: list[str] = []
        """Rows that the runner still has and should forget."""

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    @property
    def last(self) -> Request:
        """Who came last, of the lowest priority: the first whose place a higher one takes."""
        return self.requests[-1]

    def enter(self, request: Request, now: float) -> None:
        """With the blocks of its prefix that were found in the cache."""
        self.requests.add(request)
        self._precedence.run(request.share, 1)
        if request.spec.adapter_digest is not None:
            request.adapter_slot = self._adapters.pin(request.spec.adapter_digest)
        request.enter(len(request.block_ids) * self._block_size, now)
        if request.num_preemptions == 0:
            self._kv.count_prefix_query(request)

    def leave(self, request: Request) -> None:
        """Gives back all that it holds; its full blocks stay in the prefix cache."""
        self.requests.remove(request)
        self._precedence.run(request.share, -1)
        self._removed.append(request.request_id)
        self._kv.cache_full_blocks(request)
        self._kv.free(request)
        if request.spec.adapter_digest is not None:
            self._adapters.unpin(request.spec.adapter_digest)
            request.adapter_slot = -1

    def take_removed(self) -> tuple[str, ...]:
        removed = tuple(self._removed)
        self._removed.clear()
        return removed
