"""Who has had how much: virtual counters of tokens, per tenant and, within a tenant, per adapter.

The virtual token counter of Sheng et al. ("Fairness in Serving Large Language Models", OSDI 2024, arXiv 2401.00588):
whoever waits with the smallest counter goes next, and pays for every token that is computed for him. In two levels, so
that a tenant's many adapters share what is the tenant's. Who comes back from idleness is lifted to the virtual time of
start-time fair queueing (Goyal et al., SIGCOMM 1996), the counter of whoever was served last: idle time is no credit,
nor is the time that an adapter took to come. When nobody is left, all debts are forgotten: the next begin as equals.
Nobody is held back while there is room, so the order costs no throughput.

Order alone is not enough for who comes rarely: he would find every place taken, and a step full of others' prompts. So
whoever runs more than his part of the batch, while others have been here lately, leaves some room in it; see `room`.
"""

from dataclasses import dataclass, field

QUANTUM = 64
"""Cost within which whoever came first goes first."""
RECENT_STEPS = 2000
"""Who has sent nothing for so long, some ten seconds, is not counted any more when the batch is divided."""
MIN_TOLERANCE = 4
"""Requests that anybody may run beyond his part before it is held against him: arrivals are uneven."""
MAX_IDLE_SHARES = 4096
"""Beyond so many that nobody uses any more, what they owe is forgotten."""


@dataclass(slots=True, eq=False)
class Share:
    """One tenant's, or one adapter's of a tenant; the root is everybody's."""

    parent: "Share | None" = None
    counter: int = 0
    """Cost of all tokens computed, and what idle times were lifted by. Never falls."""
    virtual_time: int = 0
    """The largest counter with which a child was served."""
    last_finish: int = 0
    """The largest counter with which a child had nothing left to do."""
    num_waiting: int = 0
    """Requests that could be served: not those whose adapter is not there."""
    num_unfinished: int = 0
    num_running: int = 0
    recent: "dict[Share, int]" = field(default_factory=dict)
    """Children that were here lately -> the step of their last arrival, earliest first."""
    children: "dict[str | None, Share]" = field(default_factory=dict)

    def charge(self, cost: int) -> None:
        """For an adapter's share. A plain sum: this runs for every request in every step."""
        self.counter += cost
        assert self.parent is not None
        self.parent.counter += cost

    @property
    def rank(self) -> int:
        """Its place among its siblings, smaller first. In quanta, so that a step's tokens do not change every place."""
        return self.counter // QUANTUM

    def serve(self) -> None:
        """It is this share's turn, whether or not there is room for it."""
        if self.parent is not None:
            self.parent.virtual_time = max(self.parent.virtual_time, self.counter)
            self.parent.serve()

    def start_waiting(self, num_requests: int = 1) -> None:
        if self.parent is None:
            return
        if self.num_waiting == 0:
            self.counter = max(self.counter, self.parent.virtual_time)
        self.num_waiting += num_requests
        self.parent.start_waiting(num_requests)

    def stop_waiting(self, num_requests: int = 1) -> None:
        if self.parent is not None:
            self.num_waiting -= num_requests
            self.parent.stop_waiting(num_requests)

    def run(self, difference: int) -> None:
        """One request more or less is in the batch."""
        self.num_running += difference
        if self.parent is not None:
            self.parent.run(difference)

    def join(self) -> None:
        """One request more is unfinished."""
        self.num_unfinished += 1
        if self.parent is not None:
            self.parent.join()

    def leave(self) -> None:
        """One less. Whoever comes after the last of them begins where the furthest of them got to."""
        self.num_unfinished -= 1
        if self.num_unfinished == 0:
            self.virtual_time = max(self.virtual_time, self.last_finish)
        if self.parent is not None:
            if self.num_unfinished == 0:
                self.parent.last_finish = max(self.parent.last_finish, self.counter)
            self.parent.leave()

    def arrive(self, step: int) -> None:
        if self.parent is None:
            return
        recent = self.parent.recent
        recent.pop(self, None)
        recent[self] = step
        while recent[first := next(iter(recent))] < step - RECENT_STEPS:
            del recent[first]
        self.parent.arrive(step)

    def part(self, num_places: int) -> float:
        """How many of the batch's places it has a claim to."""
        if self.parent is None:
            return num_places
        return self.parent.part(num_places) / max(len(self.parent.recent), 1)

    def is_over_part(self, num_places: int) -> bool:
        """Whether it, or its tenant, runs clearly more than its part."""
        if self.parent is None:
            return False
        part = self.part(num_places)
        tolerated = part + max(part / 2, MIN_TOLERANCE)
        return (part < num_places and self.num_running >= tolerated) or self.parent.is_over_part(num_places)

    def is_ahead_of(self, other: "Share") -> bool:
        """Whether it would be served first, if both waited."""
        if self.parent is other.parent or self.parent is None or other.parent is None:
            return self.rank < other.rank
        return self.parent.is_ahead_of(other.parent)

    def child(self, name: str | None) -> "Share":
        if name not in self.children:
            if len(self.children) > MAX_IDLE_SHARES:
                self._forget_idle()
            self.children[name] = Share(self)
        return self.children[name]

    def _forget_idle(self) -> None:
        self.children = {name: child for name, child in self.children.items() if child.num_unfinished}
