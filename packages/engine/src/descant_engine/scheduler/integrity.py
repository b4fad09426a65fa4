"""What must always be true of the scheduler's requests."""

from collections import Counter
from collections.abc import Iterable, Mapping

from descant_engine.request import Request, RequestStatus
from descant_engine.scheduler.queue import OrderedRequests
from descant_engine.scheduler.waiting import WaitingRequests


def check_requests(
    alive: Mapping[str, Request],
    waiting: WaitingRequests,
    running: OrderedRequests,
    completing: Iterable[Mapping[str, Request]],
) -> None:
    """Asserts that each living request stands in one line, as its status says, and that its counts agree.

    `completing`: per step whose result is due, the requests that it gives a token or a vector.
    """
    waiting.check_integrity()
    running.check_integrity()
    in_line = [r.request_id for r in alive.values() if r.status is not RequestStatus.WAITING_FOR_GRAMMAR]
    assert sorted(r.request_id for r in (*waiting, *running)) == sorted(in_line)
    assert all(request.status is RequestStatus.RUNNING for request in running)
    assert all(request.status < RequestStatus.FINISHED for request in alive.values())
    assert not any(request.status is RequestStatus.RUNNING or request.block_ids for request in waiting)
    in_flight = Counter(id(request) for by_id in completing for request in by_id.values())
    for request in alive.values():
        assert request.num_inflight_samples == in_flight[id(request)], f"samples of {request.request_id}"
        assert 0 <= request.num_computed_tokens <= request.num_tokens
        assert len(request.output_token_ids) + request.num_inflight_samples <= request.max_tokens


def count_adapters(requests: Iterable[Request]) -> Counter[str]:
    """Adapter digest -> how many of the requests use it."""
    return Counter(r.spec.adapter_digest for r in requests if r.spec.adapter_digest is not None)
