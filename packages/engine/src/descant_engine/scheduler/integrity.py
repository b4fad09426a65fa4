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
    samplings: Iterable[Mapping[str, Request]],
) -> None:
    """Asserts that each living request stands in one line, as its status says, and that its counts agree.

    `samplings`: per step whose result is due, the requests that it samples.
    """
    waiting.check_integrity()
    running.check_integrity()
    assert sorted(r.request_id for r in (*waiting, *running)) == sorted(alive)
    assert all(request.status is RequestStatus.RUNNING for request in running)
    assert all(request.status < RequestStatus.FINISHED for request in alive.values())
    assert not any(request.status is RequestStatus.RUNNING or request.block_ids for request in waiting)
    in_flight = Counter(id(request) for sampling in samplings for request in sampling.values())
    for request in alive.values():
        assert request.num_inflight_samples == in_flight[id(request)], f"samples of {request.request_id}"
        assert 0 <= request.num_computed_tokens <= request.num_tokens
        assert len(request.output_token_ids) + request.num_inflight_samples <= request.max_tokens


def count_adapters(requests: Iterable[Request]) -> Counter[str]:
    """Adapter digest -> how many of the requests use it."""
    return Counter(r.spec.adapter_digest for r in requests if r.spec.adapter_digest is not None)
