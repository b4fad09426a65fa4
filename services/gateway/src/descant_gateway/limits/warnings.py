"""Tells organizations that a limit passed one of its warning thresholds: once each period, signed, off the path.

The signature is `x-descant-signature: t=<seconds>,v1=<hex of HMAC-SHA-256(secret, "<seconds>.<body>")>`, so that a
receiver can refuse what is forged or old.
"""

import asyncio
import contextlib
import hmac
import time
from collections.abc import Callable, Mapping
from typing import Final
from uuid import UUID

import aiohttp
import msgspec
import structlog
from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError

from descant_gateway.catalogue.snapshot import Webhook
from descant_gateway.egress.connections import Refusal, guarded_connector
from descant_gateway.limits.limit import Limit, Standing, period_end
from descant_gateway.limits.paths import LimitPath, tag_of
from descant_gateway.process.metrics import Metrics

SIGNATURE_HEADER: Final = "x-descant-signature"
_MAX_WAITING: Final = 1000
_MAX_UNDER_WAY: Final = 500
"""Most of them wait for another try at an endpoint that does not answer."""
_SENT_AT_ONCE: Final = 8
_MAX_REMEMBERED: Final = 50_000
_RETRY_DELAYS_S: Final = (1.0, 4.0, 16.0, 64.0)
_SEND_TIMEOUT_S: Final = 5.0
_RATE_WINDOW_S: Final = 3600.0
"""A limit without a calendar's period warns once an hour."""


class LimitWarning(Struct, frozen=True, kw_only=True):
    """What is sent, as JSON."""

    type: str = "limit.warning"
    organization_id: UUID
    level: str
    owner_id: str
    kind: str
    model: str | None
    capacity: int
    """Requests, tokens or micro-dollars."""
    used: int
    """Settled and reserved."""
    threshold_percent: int
    window_ends_at: float
    """Seconds since 1970."""


class LimitWarnings:
    """Owns the warnings on their way. `look` costs a division for each limit that has thresholds."""

    def __init__(
        self,
        webhooks: Callable[[], Mapping[UUID, Webhook]],
        valkey: "Redis",
        metrics: Metrics,
        refusal: Refusal,
    ) -> None:
        """`refusal` says where no webhook may lead."""
        self._webhooks = webhooks
        self._valkey = valkey
        self._metrics = metrics
        self._refusal = refusal
        self._warned: dict[str, tuple[float, int]] = {}
        self._waiting: asyncio.Queue[LimitWarning] = asyncio.Queue(_MAX_WAITING)
        self._at_once = asyncio.Semaphore(_SENT_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None
        self._sender: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("descant_gateway.limits.warnings")

    def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=guarded_connector(self._refusal, keepalive_s=5),
            timeout=aiohttp.ClientTimeout(total=_SEND_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        self._sender = asyncio.get_running_loop().create_task(self._keep_sending(), name="limit-warnings")

    async def close(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        await self._valkey.aclose()

    def shadow_refused(self, limit: Limit) -> None:
        self._metrics.shadow_refused(limit.level.value, limit.kind.value, limit.model)

    def look(self, path: LimitPath, standings: tuple[Standing, ...]) -> None:
        """Queues a warning for the highest threshold that each limit has passed, if nobody was told yet."""
        if path.organization_id not in self._webhooks():
            return
        for standing in standings:
            threshold = _passed(standing)
            if threshold and self._is_new(standing, threshold):
                self._queue(_warning(path.organization_id, standing, threshold))

    def _is_new(self, standing: Standing, threshold: int) -> bool:
        counter, ends_at = standing.limit.counter, _window_end(standing)
        if (ends_at, threshold) <= self._warned.get(counter, (0.0, 0)):
            return False
        if len(self._warned) > _MAX_REMEMBERED:
            self._warned.clear()
        self._warned[counter] = (ends_at, threshold)
        return True

    def _queue(self, warning: LimitWarning) -> None:
        try:
            self._waiting.put_nowait(warning)
        except asyncio.QueueFull:
            self._metrics.warned("dropped")

    async def _keep_sending(self) -> None:
        async with asyncio.TaskGroup() as senders:
            under_way = asyncio.Semaphore(_MAX_UNDER_WAY)
            while True:
                warning = await self._waiting.get()
                await under_way.acquire()
                senders.create_task(self._send(warning, under_way))

    async def _send(self, warning: LimitWarning, under_way: asyncio.Semaphore) -> None:
        """One replica sends; the receiver may see a warning twice if Valkey forgot who did."""
        try:
            webhook = self._webhooks().get(warning.organization_id)
            if webhook is not None and await self._is_ours(warning):
                is_sent = await self._deliver(webhook, msgspec.json.encode(warning))
                self._metrics.warned("sent" if is_sent else "failed")
        finally:
            under_way.release()

    async def _is_ours(self, warning: LimitWarning) -> bool:
        window = f"{warning.window_ends_at:.0f}:{warning.threshold_percent}"
        limit = f"{warning.kind}:{warning.owner_id}:{warning.model or ''}"
        key = f"{tag_of(warning.organization_id)}:warned:{limit}:{window}"
        seconds = max(60, int(warning.window_ends_at - time.time()) + 86_400)
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                return bool(await self._valkey.set(key, "1", nx=True, ex=seconds))
        return True

    async def _deliver(self, webhook: Webhook, body: bytes) -> bool:
        for delay_s in (*_RETRY_DELAYS_S, None):
            async with self._at_once:
                reason = await self._try_to_deliver(webhook, body)
            if not reason:
                return True
            if delay_s is not None:
                await asyncio.sleep(delay_s)
        self._log.warning("a limit's warning could not be delivered", url=webhook.url, reason=reason)
        return False

    async def _try_to_deliver(self, webhook: Webhook, body: bytes) -> str:
        """Why not; empty if it was taken."""
        headers = {"content-type": "application/json", SIGNATURE_HEADER: sign(webhook.secret, body, int(time.time()))}
        assert self._session is not None
        try:
            async with self._session.post(webhook.url, data=body, headers=headers, allow_redirects=False) as reply:
                return "" if 200 <= reply.status < 300 else f"status {reply.status}"
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return repr(error)


def sign(secret: str, body: bytes, seconds: int) -> str:
    digest = hmac.digest(secret.encode(), f"{seconds}.".encode() + body, "sha256").hex()
    return f"t={seconds},v1={digest}"


def _passed(standing: Standing) -> int:
    """The highest of the limit's thresholds that is passed; 0 for none."""
    limit = standing.limit
    if not limit.warn_at:
        return 0
    percent = 100 * (limit.capacity - standing.left) / limit.capacity if limit.capacity else 100.0
    return max((threshold for threshold in limit.warn_at if percent >= threshold), default=0)


def _window_end(standing: Standing) -> float:
    if standing.limit.is_budget:
        return period_end(standing.limit.period, standing.now)
    return (standing.now // _RATE_WINDOW_S + 1) * _RATE_WINDOW_S


def _warning(organization_id: UUID, standing: Standing, threshold: int) -> LimitWarning:
    limit = standing.limit
    return LimitWarning(
        organization_id=organization_id,
        level=limit.level.value,
        owner_id=limit.owner,
        kind=limit.kind.value,
        model=limit.model,
        capacity=limit.capacity,
        used=standing.used,
        threshold_percent=threshold,
        window_ends_at=_window_end(standing),
    )
