"""Requests in the order in which they are served."""

from bisect import bisect_left
from collections.abc import Iterator

from descant_engine.request import Request


class OrderedRequests:
    """A list kept in the order (priority, arrival): the running requests.

    Whoever came first is preempted last, also after it was preempted: the first always makes progress, so by induction
    everybody of its priority does.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __getitem__(self, index: int) -> Request:
        return self._requests[index]

    def add(self, request: Request) -> None:
        self._requests.insert(self._position(request), request)

    def remove(self, request: Request) -> None:
        """Raises ValueError if the request is not here."""
        position = self._position(request)
        if position == len(self._requests) or self._requests[position] is not request:
            raise ValueError(f"request {request.request_id} is not in this line")
        del self._requests[position]

    def check_integrity(self) -> None:
        keys = [order(request) for request in self._requests]
        assert keys == sorted(set(keys)), "requests out of order, or one of them twice"

    def _position(self, request: Request) -> int:
        return bisect_left(self._requests, order(request), key=order)


def order(request: Request) -> tuple[int, int]:
    """Smaller is served earlier."""
    return request.spec.priority, request.arrival_number
