"""The requests that wait, in lines: one for each priority, tenant and adapter.

Priorities go strictly before each other. Within one, the tenant with the smallest share goes first, of his lines the
one with the smallest share, and in a line whoever came first. A line whose adapter is not usable is parked: it costs
nothing until the adapter has come, and nobody waits behind it.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from descant_engine.request import Request
from descant_engine.scheduler.contest import Contest
from descant_engine.share import Share


@dataclass(slots=True, eq=False)
class _Line:
    """Requests of one priority, tenant and adapter, first come first served."""

    share: Share
    tenant: "_Tenant"
    group: "_PriorityClass"
    requests: deque[Request] = field(default_factory=deque)
    is_parked: bool = False
    is_aside: bool = False

    @property
    def front(self) -> Request | None:
        return None if self.is_parked or self.is_aside or not self.requests else self.requests[0]

    def add(self, request: Request) -> None:
        if not self.requests or self.requests[-1].arrival_number < request.arrival_number:
            self.requests.append(request)
        else:
            insort(self.requests, request, key=_arrival)


@dataclass(slots=True, eq=False)
class _Tenant:
    """One tenant's lines of one priority."""

    share: Share
    num_lines: int = 0
    contest: Contest[_Line] = field(default_factory=Contest)
    parked: dict[_Line, None] = field(default_factory=dict)
    """In the order in which they began to wait for their adapters."""

    @property
    def front(self) -> Request | None:
        line = self.contest.first()
        return None if line is None else line.front


class _PriorityClass:
    def __init__(self) -> None:
        self.contest: Contest[_Tenant] = Contest()
        self.tenants: dict[Share, _Tenant] = {}
        self.lines: dict[Share, _Line] = {}

    def open(self, share: Share) -> _Line:
        assert share.parent is not None
        tenant = self.tenants.setdefault(share.parent, _Tenant(share.parent))
        tenant.num_lines += 1
        line = self.lines[share] = _Line(share, tenant, self)
        return line

    def close(self, line: _Line) -> None:
        del self.lines[line.share]
        line.tenant.parked.pop(line, None)
        line.tenant.num_lines -= 1
        if line.tenant.num_lines == 0:
            del self.tenants[line.tenant.share]

    def enter(self, line: _Line) -> None:
        line.tenant.contest.enter(line)
        self.contest.enter(line.tenant)


class WaitingRequests:
    """Every waiting request is in one line, or held. What is parked or held is the caller's decision."""

    def __init__(self) -> None:
        self._classes: dict[int, _PriorityClass] = {}
        self._by_adapter: dict[str | None, dict[_Line, None]] = {}
        self._held: dict[Request, None] = {}
        self._aside: list[_Line] = []
        self._size = 0
        self.num_parked = 0
        """Requests in parked lines."""

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Request]:
        """Not in the order of service."""
        for line in self._lines():
            yield from line.requests
        yield from self._held

    @property
    def held(self) -> tuple[Request, ...]:
        return tuple(self._held)

    def hold(self, request: Request) -> None:
        """Takes a request out of its line until `resume`."""
        self.remove(request)
        self._held[request] = None
        self._size += 1

    def resume(self, request: Request) -> None:
        """Puts a held request back into its line."""
        del self._held[request]
        self._size -= 1
        self.add(request)

    def add(self, request: Request) -> None:
        line = self._line_of(request) or self._open_line(request)
        if not line.is_parked:
            request.share.start_waiting()
        line.add(request)
        self._size += 1
        self.num_parked += line.is_parked
        if line.requests[0] is request:
            line.group.enter(line)

    def remove(self, request: Request) -> None:
        """Raises ValueError if the request does not wait."""
        if request in self._held:
            del self._held[request]
            self._size -= 1
            return
        line = self._line_of(request)
        if line is None:
            raise ValueError(f"request {request.request_id} does not wait")
        line.requests.remove(request)
        if not line.is_parked:
            request.share.stop_waiting()
        self._size -= 1
        self.num_parked -= line.is_parked
        if not line.requests:
            self._close_line(line, request)

    def first(self) -> Request | None:
        """Who goes next, of all who are neither parked nor set aside."""
        for priority in sorted(self._classes):
            tenant = self._classes[priority].contest.first()
            if tenant is not None:
                return tenant.front
        return None

    def set_aside(self, shares: Iterable[Share]) -> None:
        """Until `put_back`, their lines send nobody."""
        for share in shares:
            for group in self._classes.values():
                if (line := group.lines.get(share)) is not None:
                    line.is_aside = True
                    self._aside.append(line)

    def put_back(self) -> None:
        for line in self._aside:
            line.is_aside = False
            line.group.enter(line)
        self._aside.clear()

    def park(self, adapter_digest: str) -> Iterator[Request]:
        """Parks an adapter's lines; gives the requests in those that were not parked yet."""
        for line in self._by_adapter.get(adapter_digest, ()):
            if not line.is_parked:
                line.is_parked = True
                line.tenant.parked[line] = None
                self.num_parked += len(line.requests)
                line.share.stop_waiting(len(line.requests))
                yield from line.requests

    def unpark(self, adapter_digest: str) -> Iterator[Request]:
        """Lets an adapter's lines go on; gives the requests in those that were parked."""
        for line in self._by_adapter.get(adapter_digest, ()):
            if line.is_parked:
                line.is_parked = False
                del line.tenant.parked[line]
                self.num_parked -= len(line.requests)
                line.share.start_waiting(len(line.requests))
                line.group.enter(line)
                yield from line.requests

    def of_adapter(self, adapter_digest: str) -> list[Request]:
        """Held ones too."""
        in_lines = [request for line in self._by_adapter.get(adapter_digest, ()) for request in line.requests]
        return in_lines + [request for request in self._held if request.spec.adapter_digest == adapter_digest]

    def parked(self, limit: int) -> Iterator[Request]:
        """The fronts of the first `limit` parked lines: tenants take turns, the one with the smallest share first; of
        each the line that has been parked for longest."""
        return islice(self._parked(), limit)

    def check_integrity(self) -> None:
        """Asserts that sizes, orders and parked lines agree."""
        lines = list(self._lines())
        assert self._size == sum(len(line.requests) for line in lines) + len(self._held)
        assert self.num_parked == sum(len(line.requests) for line in lines if line.is_parked)
        assert {*lines} == {line for group in self._by_adapter.values() for line in group}
        for line in lines:
            arrivals = [request.arrival_number for request in line.requests]
            assert arrivals, "an empty line"
            assert arrivals == sorted(set(arrivals)), "requests out of order, or one of them twice"
            assert all(self._line_of(request) is line for request in line.requests)
            assert line.is_parked == (line in line.tenant.parked)

    def _lines(self) -> Iterator[_Line]:
        return (line for group in self._classes.values() for line in group.lines.values())

    def _line_of(self, request: Request) -> _Line | None:
        group = self._classes.get(request.spec.priority)
        return None if group is None else group.lines.get(request.share)

    def _open_line(self, request: Request) -> _Line:
        line = self._classes.setdefault(request.spec.priority, _PriorityClass()).open(request.share)
        self._by_adapter.setdefault(request.spec.adapter_digest, {})[line] = None
        return line

    def _close_line(self, line: _Line, last: Request) -> None:
        line.group.close(line)
        if not line.group.lines:
            del self._classes[last.spec.priority]
        of_adapter = self._by_adapter[last.spec.adapter_digest]
        del of_adapter[line]
        if not of_adapter:
            del self._by_adapter[last.spec.adapter_digest]

    def _parked(self) -> Iterator[Request]:
        if self.num_parked == 0:
            return
        for priority in sorted(self._classes):
            tenants = sorted(self._classes[priority].tenants.values(), key=_counter)
            turns = deque(iter(tenant.parked) for tenant in tenants)
            while turns:
                if (line := next(turns[0], None)) is None:
                    turns.popleft()
                else:
                    turns.rotate(-1)
                    yield line.requests[0]


def _arrival(request: Request) -> int:
    return request.arrival_number


def _counter(tenant: _Tenant) -> int:
    return tenant.share.counter
