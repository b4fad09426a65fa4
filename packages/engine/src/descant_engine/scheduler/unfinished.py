"""Every request that is under way, from its arrival to its end: the one place where a request's status changes."""

from collections.abc import Iterator, Mapping

from descant_engine.cache.caches import Caches
from descant_engine.request import FinishReason, Request, RequestStatus
from descant_engine.scheduler.batch import Batch
from descant_engine.scheduler.precedence import Precedence
from descant_engine.scheduler.shares import Shares
from descant_engine.scheduler.waiting import WaitingRequests
from descant_engine.speculation.speculation import Speculation


class UnfinishedRequests:
    """Each one waits or runs. A change of its status goes through here, with all that follows from it: its line, its
    blocks, its adapter's users, its share.
    """

    def __init__(
        self, caches: Caches, precedence: Precedence, speculation: Speculation | None, block_size: int
    ) -> None:
        _, kv, adapters = caches
        self.waiting = WaitingRequests()
        self.running = Batch(kv, adapters, precedence, block_size)
        self.num_preemptions = 0
        self.num_waiting_for_grammar = 0
        self._by_id: dict[str, Request] = {}
        self._kv = kv
        self._adapters = adapters
        self._precedence = precedence
        self._speculation = speculation
        self._shares = Shares()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._by_id.values())

    @property
    def by_id(self) -> Mapping[str, Request]:
        return self._by_id

    @property
    def num_waiting(self) -> int:
        """All that do not run."""
        return len(self.waiting) + self.num_waiting_for_grammar

    def join(self, request: Request, step: int) -> None:
        """A request has come, at `request.arrived`. It stands in no line until `queue`, but what it needs stays.
        `step`: the number of the last step."""
        request.status = RequestStatus.WAITING_FOR_GRAMMAR
        self.num_waiting_for_grammar += 1
        self._by_id[request.request_id] = request
        request.share = self._shares.join(request, step)
        self._precedence.join(request, request.arrived)
        if request.spec.adapter_digest is not None:
            self._adapters.add_user(request.spec.adapter_digest)

    def queue(self, request: Request) -> None:
        """It can be served: its grammar is there, if it has one."""
        self.num_waiting_for_grammar -= 1
        self._wait(request)

    def admit(self, request: Request, now: float) -> None:
        """Into the batch, with the blocks of its prefix that were found in the cache."""
        self.waiting.remove(request)
        self.running.enter(request, now)
        request.status = RequestStatus.RUNNING

    def preempt(self, request: Request) -> None:
        """Takes a running request's blocks and sends it back to its line; what it has computed is lost."""
        self.running.leave(request)
        request.preempt()
        self._wait(request)
        self.num_preemptions += 1

    def park(self, adapter_digest: str) -> None:
        """Until `unpark`, whoever waits with this adapter waits for it."""
        for request in self.waiting.park(adapter_digest):
            request.status = RequestStatus.WAITING_FOR_ADAPTER

    def unpark(self, adapter_digest: str) -> None:
        for request in self.waiting.unpark(adapter_digest):
            request.status = _waiting_status(request)

    def finish(self, request: Request, reason: FinishReason, now: float) -> None:
        """Frees all that it holds. Its samples on their way come to nothing."""
        if request.status is RequestStatus.WAITING_FOR_GRAMMAR:
            self.num_waiting_for_grammar -= 1
        elif request.status is RequestStatus.RUNNING:
            self.running.leave(request)
        else:
            self.waiting.remove(request)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        self._kv.forget(request)
        if self._speculation is not None:
            self._speculation.forget(request.request_id)
        del self._by_id[request.request_id]
        self._shares.leave(request.share)
        self._precedence.leave(request, now)
        if request.spec.adapter_digest is not None:
            self._adapters.drop_user(request.spec.adapter_digest)

    def _wait(self, request: Request) -> None:
        """Puts a new or preempted request into its line."""
        digest = request.spec.adapter_digest
        request.status = _waiting_status(request)
        self.waiting.add(request)
        if digest is not None and not self._adapters.is_usable(digest):
            request.status = RequestStatus.WAITING_FOR_ADAPTER
            self.park(digest)


def _waiting_status(request: Request) -> RequestStatus:
    return RequestStatus.PREEMPTED if request.num_preemptions else RequestStatus.WAITING
