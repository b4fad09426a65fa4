"""Limits as data: what each counts over which time, what it has left, and how that is told to the client.

Pure; `limiter` holds the counters. A new kind of limit is one more line in `_MEANINGS`.
"""

import math
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from msgspec import Struct

from descant_wire.errors import ApiError, ErrorDetail

RETRIED_WITHIN_S: Final = 60.0
"""A client that has to wait for longer is told not to try again by itself."""
_LEASE_RETRY_S: Final = 1.0
"""When a running request ends is not known."""


class Counted(StrEnum):
    REQUESTS = "requests"
    TOKENS = "tokens"
    MONEY = "microdollars"


class Period(StrEnum):
    MINUTE = "minute"
    """Sliding: a token bucket that refills evenly, its whole capacity in a minute."""
    DAY = "day"
    WEEK = "week"
    """From Monday."""
    MONTH = "month"
    """Days, weeks and months are the calendar's, in UTC."""
    OPEN = "open"
    """What runs now."""


class LimitKind(StrEnum):
    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    TOKENS_PER_DAY = "tokens_per_day"
    CONCURRENT_REQUESTS = "concurrent_requests"
    MONEY_PER_DAY = "money_per_day"
    MONEY_PER_WEEK = "money_per_week"
    MONEY_PER_MONTH = "money_per_month"


_MEANINGS: Final[dict[LimitKind, tuple[Counted, Period]]] = {
    LimitKind.REQUESTS_PER_MINUTE: (Counted.REQUESTS, Period.MINUTE),
    LimitKind.TOKENS_PER_MINUTE: (Counted.TOKENS, Period.MINUTE),
    LimitKind.TOKENS_PER_DAY: (Counted.TOKENS, Period.DAY),
    LimitKind.CONCURRENT_REQUESTS: (Counted.REQUESTS, Period.OPEN),
    LimitKind.MONEY_PER_DAY: (Counted.MONEY, Period.DAY),
    LimitKind.MONEY_PER_WEEK: (Counted.MONEY, Period.WEEK),
    LimitKind.MONEY_PER_MONTH: (Counted.MONEY, Period.MONTH),
}


class Level(StrEnum):
    KEY = "key"
    PROJECT = "project"
    TEAM = "team"
    ORGANIZATION = "organization"


class Limit(Struct, frozen=True):
    level: Level
    kind: LimitKind
    owner: str
    """The id of the key, project, team or organization whose it is."""
    capacity: int
    """Requests, tokens or micro-dollars."""
    model: str | None = None
    """Counts only what goes to this adapter, or to this model and its adapters."""
    is_shadow: bool = False
    """Counts and reports, never refuses."""
    warn_at: tuple[int, ...] = ()
    """Percent used, rising."""

    @property
    def counted(self) -> Counted:
        return _MEANINGS[self.kind][0]

    @property
    def period(self) -> Period:
        return _MEANINGS[self.kind][1]

    @property
    def counter(self) -> str:
        """Its counter's name, unique in the organization."""
        return f"{self.kind}:{self.owner}:{self.model or ''}"

    @property
    def is_budget(self) -> bool:
        """Held for a day or longer: what is lost of it does not come back by itself."""
        return self.period not in (Period.MINUTE, Period.OPEN)

    @property
    def is_shown(self) -> bool:
        """OpenAI's headers know requests and tokens, over some time."""
        return self.counted is not Counted.MONEY and self.period is not Period.OPEN and not self.is_shadow

    def shown(self, amount: float) -> str:
        """The amount for people: money in dollars."""
        if self.counted is Counted.MONEY:
            return f"${amount / 1e6:.6f}".rstrip("0").rstrip(".")
        return str(math.floor(amount))

    def __str__(self) -> str:
        words = self.kind.replace("_", " ")
        return words if self.model is None else f"{words} for the model {self.model!r}"


class Standing(Struct, frozen=True):
    """Where a limit stands at `now` (seconds since 1970, Valkey's clock): `left` is below zero when it is in debt."""

    limit: Limit
    left: float
    now: float

    @property
    def remaining(self) -> int:
        return max(0, math.floor(self.left))

    @property
    def used(self) -> int:
        return self.limit.capacity - math.floor(self.left)

    @property
    def reset_s(self) -> float:
        """Until all of it is there again; 0 for what runs now, whose end nobody knows."""
        if self.limit.period is Period.MINUTE:
            return self._refill_s(self.limit.capacity)
        return 0.0 if self.limit.period is Period.OPEN else period_end(self.limit.period, self.now) - self.now

    def wait_s(self, amount: int) -> float:
        """Until `amount` fits; 0 if it does now."""
        if amount <= self.left:
            return 0.0
        if self.limit.period is Period.MINUTE:
            return self._refill_s(amount)
        return _LEASE_RETRY_S if self.limit.period is Period.OPEN else self.reset_s

    def _refill_s(self, amount: int) -> float:
        return max(0.0, (amount - self.left) * 60 / self.limit.capacity) if self.limit.capacity else math.inf


class Amounts(Struct, frozen=True):
    """What a request takes."""

    requests: int
    tokens: int
    microdollars: int = 0

    def of(self, limit: Limit) -> int:
        match limit.counted:
            case Counted.REQUESTS:
                return self.requests
            case Counted.TOKENS:
                return self.tokens
            case Counted.MONEY:
                return self.microdollars


NOTHING: Final = Amounts(0, 0)


def period_begin(period: Period, now: float) -> float:
    """When the calendar's day, week or month that holds `now` began; both in seconds since 1970."""
    midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.WEEK:
        midnight -= timedelta(days=midnight.weekday())
    elif period is Period.MONTH:
        midnight = midnight.replace(day=1)
    return midnight.timestamp()


def period_end(period: Period, now: float) -> float:
    """When the calendar's day, week or month that holds `now` ends; both in seconds since 1970."""
    midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.WEEK:
        end = midnight + timedelta(days=7 - midnight.weekday())
    elif period is Period.MONTH:
        end = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
    else:
        end = midnight + timedelta(days=1)
    return end.timestamp()


def rate_limit_headers(standings: tuple[Standing, ...]) -> dict[str, str]:
    """OpenAI's x-ratelimit-{limit,remaining,reset}-{requests,tokens}, each of the tightest limit of those given, which
    have to be shown ones."""
    tightest: dict[str, Standing] = {}
    for standing in standings:
        counted = standing.limit.counted
        other = tightest.get(counted)
        if other is None or standing.left < other.left:
            tightest[counted] = standing
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
    """429. Its headers say where every limit stands, besides when to come back.

    OpenAI's clients retry a 429 unless `x-should-retry` says no: it does for a budget, and for every wait that is
    longer than a client should sit out.
    """

    def __init__(
        self, detail: ErrorDetail, standings: tuple[Standing, ...], *, retry_after_s: float | None, is_retried: bool
    ) -> None:
        super().__init__(429, detail, retry_after_s=retry_after_s)
        self._standings = standings
        self._is_retried = is_retried

    @property
    def headers(self) -> dict[str, str]:
        shown = tuple(standing for standing in self._standings if standing.limit.is_shown)
        headers = super().headers | rate_limit_headers(shown)
        if not self._is_retried:
            headers["x-should-retry"] = "false"
        return headers


def too_large(limit: Limit, amounts: Amounts) -> LimitExceeded:
    """Waiting does not help: this request is larger than its limit."""
    message = (
        f"Request too large for this {limit.level}'s limit of {limit}: it may need {limit.shown(amounts.of(limit))} "
        f"and the limit is {limit.shown(limit.capacity)}. Shorten the prompt or lower max_tokens."
    )
    return LimitExceeded(_detail(message, limit), (), retry_after_s=None, is_retried=False)


def exceeded(standings: tuple[Standing, ...], amounts: Amounts) -> LimitExceeded:
    """Names the limit that has to be waited for the longest: its Retry-After is enough for all of them."""
    refusing = [standing for standing in standings if not standing.limit.is_shadow]
    worst = max(refusing, key=lambda standing: standing.wait_s(amounts.of(standing.limit)))
    limit = worst.limit
    wait_s = worst.wait_s(amounts.of(limit))
    message = (
        f"{'Budget spent' if limit.counted is Counted.MONEY else 'Limit reached'} for this {limit.level}: {limit}. "
        f"Limit {limit.shown(limit.capacity)}, left {limit.shown(worst.remaining)}, "
        f"requested {limit.shown(amounts.of(limit))}. Try again in {go_duration(wait_s)}. GET /v1/limits tells more."
    )
    is_retried = limit.counted is not Counted.MONEY and wait_s <= RETRIED_WITHIN_S
    return LimitExceeded(_detail(message, limit), standings, retry_after_s=wait_s, is_retried=is_retried)


def would_have_refused(standing: Standing) -> bool:
    """Of a granted request: did a shadow limit lack what it took?"""
    return standing.limit.is_shadow and standing.left < 0


def _detail(message: str, limit: Limit) -> ErrorDetail:
    if limit.counted is Counted.MONEY:
        return ErrorDetail(message=message, type="insufficient_quota", code="budget_exceeded")
    return ErrorDetail(message=message, type=limit.counted.value, code="rate_limit_exceeded")
