import pytest

from descant_engine.request import EngineRequest, Request
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.queue import OrderedRequests


def _request(arrival_number: int, priority: int = 0) -> Request:
    spec = EngineRequest(
        request_id=f"r{arrival_number}", prompt_token_ids=(1,), params=SamplingParams(), priority=priority
    )
    return Request(spec=spec, max_tokens=1, seed=0, arrival_number=arrival_number)


def test_requests_stand_by_priority_then_arrival_however_they_come() -> None:
    line = OrderedRequests()
    requests = [_request(3), _request(1), _request(4, priority=-1), _request(2, priority=1), _request(0)]
    for request in requests:
        line.add(request)
    line.check_integrity()
    assert [request.arrival_number for request in line] == [4, 0, 1, 3, 2]
    assert list(line)[:2] == [requests[2], requests[4]]
    assert line[-1] is requests[3]


def test_one_is_removed_and_no_other() -> None:
    line = OrderedRequests()
    first, second = _request(0), _request(1)
    line.add(first)
    line.add(second)
    line.remove(first)
    assert list(line) == [second]
    for stranger in (first, _request(1), _request(2)):
        with pytest.raises(ValueError, match="not in this line"):
            line.remove(stranger)
