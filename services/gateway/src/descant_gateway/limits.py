"""Limits as data: which ones lie on a request's path, what each has left, and how that is told to the client.

Pure; `limiter` holds the counters. A new dimension or level is one more `Limit` in `limits_on_path`.
"""

import math
from enum import StrEnum
from typing import Final

from msgspec import Struct

from descant_gateway.authenticate import Caller
from descant_gateway.catalogue import RateLimits
from descant_wire.errors import ApiError, ErrorDetail

_MINUTE_S: Final = 60


class Dimension(StrEnum):
    REQUESTS = "requests"
    TOKENS = "tokens"


class Level(StrEnum):
    KEY = "key"
    TEAM = "team"


class Limit(Struct, frozen=True):
    """One token bucket: full it holds `capacity`, and it refills evenly, its whole capacity in a minute."""

    level: Level
    dimension: Dimension
    owner: str
    """The id of the key or team whose bucket it is."""
    capacity: int

    @property
    def refill_per_s(self) -> float:
        return self.capacity / _MINUTE_S


class Standing(Struct, frozen=True):
    """Where a limit stands: `held` is what its bucket holds, below zero when it is in debt."""

    limit: Limit
    held: float

    @property
    def remaining(self) -> int:
        return max(0, math.floor(self.held))

    @property
    def reset_s(self) -> float:
        """Until the bucket is full."""
        return (self.limit.capacity - self.held) / self.limit.refill_per_s

    def wait_s(self, amount: int) -> float:
        """Until `amount` fits; 0 if it does now."""
        return max(0.0, (amount - self.held) / self.limit.refill_per_s)


class Amounts(Struct, frozen=True):
    """What a request takes of each dimension."""

    requests: int
    tokens: int

    def of(self, dimension: Dimension) -> int:
        return self.requests if dimension is Dimension.REQUESTS else self.tokens


NOTHING: Final = Amounts(0, 0)


def limits_on_path(caller: Caller) -> tuple[Limit, ...]:
    """Every limit that applies, key before team; all of them must pass."""
    return (
        *_limits_of(caller.key.limits, Level.KEY, caller.key.public_id),
        *_limits_of(caller.team.limits, Level.TEAM, caller.team.id.hex),
    )


def _limits_of(limits: RateLimits, level: Level, owner: str) -> tuple[Limit, ...]:
    per_minute = ((Dimension.REQUESTS, limits.requests_per_minute), (Dimension.TOKENS, limits.tokens_per_minute))
    return tuple(Limit(level, dimension, owner, capacity) for dimension, capacity in per_minute if capacity is not None)


def rate_limit_headers(standings: tuple[Standing, ...]) -> dict[str, str]:
    """OpenAI's x-ratelimit-{limit,remaining,reset}-{requests,tokens}, each of the tightest limit on the path."""
    tightest: dict[Dimension, Standing] = {}
    for standing in standings:
        other = tightest.get(standing.limit.dimension)
        if other is None or standing.held < other.held:
            tightest[standing.limit.dimension] = standing
    headers = {}
    for name, standing in tightest.items():
        headers[f"x-ratelimit-limit-{name}"] = str(standing.limit.capacity)
        headers[f"x-ratelimit-remaining-{name}"] = str(standing.remaining)
        headers[f"x-ratelimit-reset-{name}"] = go_duration(standing.reset_s)
    return headers


def go_duration(seconds: float) -> str:
    """As Go prints durations and OpenAI sends them: 12ms, 1.5s, 6m0s; rounded up to milliseconds."""
    total_ms = max(0, math.ceil(seconds * 1000))
    if total_ms < 1000:
        return f"{total_ms}ms" if total_ms else "0s"
    minutes, ms = divmod(total_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{ms / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


class LimitExceeded(ApiError):
    """429. Its headers say where every limit stands, besides when to come back."""

    def __init__(self, detail: ErrorDetail, standings: tuple[Standing, ...], *, retry_after_s: float | None) -> None:
        super().__init__(429, detail, retry_after_s=retry_after_s)
        self._standings = standings

    @property
    def headers(self) -> dict[str, str]:
        headers = super().headers | rate_limit_headers(self._standings)
        if self.retry_after_s is None:
            headers["x-should-retry"] = "false"  # OpenAI's clients retry a 429 unless told
        return headers


def can_never_hold(limit: Limit, amounts: Amounts) -> bool:
    return limit.capacity < 1 or amounts.of(limit.dimension) > limit.capacity


def too_large(limit: Limit, amounts: Amounts) -> LimitExceeded:
    """Waiting does not help: this request is larger than its limit."""
    message = (
        f"Request too large for this {limit.level}: it needs {amounts.of(limit.dimension)} {limit.dimension} "
        f"and the limit is {limit.capacity} a minute. Shorten the prompt or lower max_tokens."
    )
    return LimitExceeded(_detail(message, limit), (), retry_after_s=None)


def exceeded(standings: tuple[Standing, ...], amounts: Amounts) -> LimitExceeded:
    """Names the limit that has to be waited for the longest: its Retry-After is enough for all of them."""
    worst = max(standings, key=lambda standing: standing.wait_s(amounts.of(standing.limit.dimension)))
    limit, requested = worst.limit, amounts.of(worst.limit.dimension)
    wait_s = worst.wait_s(requested)
    message = (
        f"Rate limit reached for this {limit.level}: {limit.dimension} per minute. "
        f"Limit {limit.capacity}, left {worst.remaining}, requested {requested}. Try again in {go_duration(wait_s)}."
    )
    return LimitExceeded(_detail(message, limit), standings, retry_after_s=wait_s)


def _detail(message: str, limit: Limit) -> ErrorDetail:
    return ErrorDetail(message=message, type=limit.dimension.value, code="rate_limit_exceeded")
