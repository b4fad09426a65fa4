"""In which order requests get their turn while backends are saturated. Pure: no clock, no tasks.

Teams of the highest priority go first. Among those of one priority the team that was served least goes next, counted in
tokens and divided by its weight: virtual token counters, arXiv:2401.00588. A team that begins to wait starts at the
counter of the team that was served last, so that nobody saves up turns by being idle. The order never leaves a turn
unused while somebody waits. What is served without waiting is not counted: it was taken from nobody.
"""

from collections import deque
from uuid import UUID


class Ask:
    """One request that waits. Compared by identity."""

    __slots__ = ("is_counted", "num_tokens", "priority", "team_id", "weight")

    def __init__(self, team_id: UUID, *, num_tokens: int, priority: int = 0, weight: int = 1) -> None:
        self.team_id = team_id
        self.num_tokens = num_tokens
        """Estimated; `FairQueue.correct` puts the truth in its place."""
        self.priority = priority
        self.weight = weight
        self.is_counted = False
        """Its team's counter has its estimate: it waited, and got its turn."""


class QueueFull(Exception):
    """Nobody may wait any more, and the asking team is the one that waits most."""


class _Band:
    """The teams of one priority."""

    __slots__ = ("counters", "served_at", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[UUID, deque[Ask]] = {}
        """Only teams that wait, in no order."""
        self.counters: dict[UUID, float] = {}
        self.served_at = 0.0
        """The counter of the team that was served last, when it was."""

    def push(self, ask: Ask) -> None:
        queue = self.waiting.get(ask.team_id)
        if queue is None:
            queue = self.waiting[ask.team_id] = deque()
            self.counters[ask.team_id] = max(self.counters.get(ask.team_id, 0.0), self.served_at)
        queue.append(ask)

    def pop(self) -> Ask:
        team_id = min(self.waiting, key=self.counters.__getitem__)
        ask = self.waiting[team_id].popleft()
        self.served_at = max(self.served_at, self.counters[team_id])
        self.counters[team_id] += ask.num_tokens / ask.weight
        ask.is_counted = True
        self._forget_if_idle(team_id)
        return ask

    def remove(self, ask: Ask) -> bool:
        queue = self.waiting.get(ask.team_id)
        if queue is None or ask not in queue:
            return False
        queue.remove(ask)
        self._forget_if_idle(ask.team_id)
        return True

    def _forget_if_idle(self, team_id: UUID) -> None:
        if not self.waiting[team_id]:
            del self.waiting[team_id]
        if len(self.counters) > 2 * len(self.waiting) + 100:
            # A counter that a returning team would be lifted above says nothing.
            self.counters = {
                team: counter
                for team, counter in self.counters.items()
                if team in self.waiting or counter > self.served_at
            }


class FairQueue:
    """Owns who waits. At most `max_length`: a full queue makes room at the cost of the team that waits most."""

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._bands: dict[int, _Band] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, ask: Ask) -> Ask | None:
        """Who had to leave for it, if anybody. Raises QueueFull."""
        evicted = None
        if self._length >= self._max_length:
            evicted = self._newest_of_the_longest()
            if evicted is None or evicted.team_id == ask.team_id or evicted.priority > ask.priority:
                raise QueueFull
            self.remove(evicted)
        self._bands.setdefault(ask.priority, _Band()).push(ask)
        self._length += 1
        return evicted

    def pop(self) -> Ask | None:
        """Whose turn it is; it waits no longer."""
        priority = max((priority for priority, band in self._bands.items() if band.waiting), default=None)
        if priority is None:
            return None
        self._length -= 1
        return self._bands[priority].pop()

    def remove(self, ask: Ask) -> bool:
        """False if it does not wait any more."""
        band = self._bands.get(ask.priority)
        is_removed = band is not None and band.remove(ask)
        self._length -= is_removed
        return is_removed

    def correct(self, ask: Ask, num_tokens: int) -> None:
        """What a served request really came to. Of one that need not wait nothing was counted, and nothing is."""
        band = self._bands.get(ask.priority)
        if ask.is_counted and band is not None and ask.team_id in band.counters:
            band.counters[ask.team_id] += (num_tokens - ask.num_tokens) / ask.weight

    def position(self, ask: Ask) -> int:
        """How many go before it at most, if requests are of like size and weight and nobody comes any more; from 0."""
        ahead = sum(
            len(queue)
            for priority, band in self._bands.items()
            if priority > ask.priority
            for queue in band.waiting.values()
        )
        teams = self._bands[ask.priority].waiting
        own = teams[ask.team_id].index(ask)
        return ahead + own + sum(min(len(queue), own + 1) for team, queue in teams.items() if team != ask.team_id)

    def _newest_of_the_longest(self) -> Ask | None:
        """Of the lowest priority that waits."""
        bands = [(priority, band) for priority, band in self._bands.items() if band.waiting]
        if not bands:
            return None
        _, band = min(bands, key=lambda entry: entry[0])
        return max(band.waiting.values(), key=len)[-1]
