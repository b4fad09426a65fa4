import pytest

from descant_engine.request import EngineRequest, Request
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.shares import Shares
from descant_engine.scheduler.waiting import WaitingRequests
from descant_engine.share import MAX_IDLE_SHARES


class Queue:
    def __init__(self) -> None:
        self.shares = Shares()
        self.waiting = WaitingRequests()
        self.num_arrivals = 0

    def add(self, request_id: str, *, tenant: str = "", adapter: str | None = None, priority: int = 0) -> Request:
        spec = EngineRequest(
            request_id=request_id,
            prompt_token_ids=(1,),
            params=SamplingParams(),
            adapter_digest=adapter,
            tenant=tenant,
            priority=priority,
        )
        request = Request(spec=spec, max_tokens=1, seed=0, arrival_number=self.num_arrivals)
        self.num_arrivals += 1
        request.share = self.shares.join(request, step=0)
        self.waiting.add(request)
        self.waiting.check_integrity()
        return request

    @property
    def num_entries(self) -> int:
        """In all contests: what `first` may have to look at."""
        groups = self.waiting._classes.values()
        return sum(len(group.contest) + sum(len(t.contest) for t in group.tenants.values()) for group in groups)

    def serve_all(self, cost: int = 100) -> list[str]:
        """In order, each paying `cost`."""
        order = []
        while (request := self.waiting.first()) is not None:
            request.share.serve()
            self.waiting.remove(request)
            self.waiting.check_integrity()
            request.share.charge(cost)
            order.append(request.request_id)
        return order


@pytest.fixture
def queue() -> Queue:
    return Queue()


def test_tenants_take_turns_and_so_do_a_tenants_adapters(queue: Queue) -> None:
    for i in range(4):
        queue.add(f"x{i}", tenant="x", adapter="a")
    for i in range(2):
        queue.add(f"y{i}", tenant="y", adapter="a")
        queue.add(f"y{i}'", tenant="y", adapter="b")
    assert queue.serve_all() == ["x0", "y0", "x1", "y0'", "x2", "y1", "x3", "y1'"]


def test_a_parked_line_keeps_nobody_waiting_and_comes_back_with_its_place(queue: Queue) -> None:
    queue.add("a0", adapter="a")
    queue.add("b0", adapter="b")
    queue.add("a1", tenant="other", adapter="a")
    assert {request.request_id for request in queue.waiting.park("a")} == {"a0", "a1"}
    assert list(queue.waiting.park("a")) == []
    assert queue.waiting.num_parked == 2
    assert [request.request_id for request in queue.waiting.parked(1)] == ["a0"]
    first = queue.waiting.first()
    assert first is not None
    assert first.request_id == "b0"
    assert len(list(queue.waiting.unpark("a"))) == 2
    assert queue.serve_all() == ["a0", "a1", "b0"]


def test_waiting_for_an_adapter_earns_no_credit(queue: Queue) -> None:
    """While a's adapter came, b had 300; from then on they take turns."""
    for i in range(3):
        queue.add(f"a{i}", adapter="a")
    list(queue.waiting.park("a"))
    for i in range(3):
        queue.add(f"b{i}", adapter="b")
    assert queue.serve_all() == ["b0", "b1", "b2"]
    queue.add("b3", adapter="b")
    queue.add("b4", adapter="b")
    list(queue.waiting.unpark("a"))
    queue.add("new", adapter="c")
    assert queue.serve_all() == ["a0", "new", "a1", "b3", "a2", "b4"]


def test_when_everybody_has_left_debts_are_forgotten(queue: Queue) -> None:
    served = [queue.add(f"a{i}", adapter="a") for i in range(3)]
    queue.serve_all()
    for request in served:
        queue.shares.leave(request.share)
    for name in ("b", "c", "a"):
        queue.add(f"{name}0", adapter=name)
        queue.add(f"{name}1", adapter=name)
    assert queue.serve_all() == ["b0", "c0", "a0", "b1", "c1", "a1"]


def test_lines_set_aside_in_every_step_cost_no_more_and_more(queue: Queue) -> None:
    """A tenant with 100 adapters gives way to another one for 100 steps."""
    requests = [queue.add(str(i), tenant="busy", adapter=str(i)) for i in range(100)]
    shares = [request.share for request in requests]
    for _ in range(100):
        queue.waiting.set_aside(shares)
        assert queue.waiting.first() is None
        queue.waiting.put_back()
        for share in shares:
            share.charge(100)
        assert queue.waiting.first() is requests[0]
    assert queue.num_entries <= 2 * len(requests)
    assert queue.serve_all(cost=10_000) == [request.request_id for request in requests]


def test_a_held_request_is_passed_over_until_it_is_resumed(queue: Queue) -> None:
    first = queue.add("first")
    queue.add("second")
    queue.waiting.hold(first)
    assert (len(queue.waiting), queue.waiting.held) == (2, (first,))
    assert [request.request_id for request in queue.waiting] == ["second", "first"]
    queue.waiting.resume(first)
    assert queue.serve_all() == ["first", "second"]
    queue.waiting.hold(again := queue.add("again"))
    queue.waiting.remove(again)
    assert len(queue.waiting) == 0
    with pytest.raises(ValueError, match="does not wait"):
        queue.waiting.remove(again)


def test_who_comes_back_starts_where_the_others_are(queue: Queue) -> None:
    for i in range(5):
        queue.add(f"busy{i}", tenant="x")
    assert len(queue.serve_all()) == 5
    for i in range(3):
        queue.add(f"x{i}", tenant="x")
        queue.add(f"y{i}", tenant="y")
    assert queue.serve_all() == ["y0", "x0", "y1", "x1", "y2", "x2"], "y has no credit of five requests"


def test_tenants_that_are_gone_are_forgotten(queue: Queue) -> None:
    for i in range(MAX_IDLE_SHARES + 100):
        request = queue.add(f"r{i}", tenant=f"t{i}")
        queue.waiting.remove(request)
        queue.shares.leave(request.share)
    assert request.share.parent is not None
    assert request.share.parent.parent is not None
    assert len(request.share.parent.parent.children) <= MAX_IDLE_SHARES + 1


def test_a_request_that_comes_back_finds_its_place_beside_what_is_left_of_its_former_line(queue: Queue) -> None:
    preempted = queue.add("a0", adapter="a")
    queue.add("b0", adapter="b")
    for _ in range(3):
        queue.waiting.remove(preempted)
        queue.waiting.add(preempted)
    assert queue.serve_all(cost=0) == ["a0", "b0"]
