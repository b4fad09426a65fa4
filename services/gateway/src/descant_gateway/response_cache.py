"""Whole replies used again, for teams that switched it on: the same request of the same team within the time.

Only what would be the same: not streamed, temperature 0 or a seed. A hit costs nothing and no tokens; it counts as a
request. Entries are sealed by a key of the team's, so that neither another team nor who reads Valkey has any use of
them.
"""

import asyncio
import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from redis.exceptions import RedisError

from descant_gateway.admitted_call import AdmittedCall
from descant_gateway.config import Secret
from descant_gateway.limits.script_queue import connect
from descant_gateway.request import InferenceRequest
from descant_gateway.sealing import NONCE_LENGTH

CACHE_HEADER: Final = "x-descant-cache"
CACHE_BACKEND: Final = "cache"
"""In place of a backend's name, in the ledger and the log."""
MAX_REPLY_BYTES: Final = 256 << 10
MAX_ENTRIES: Final = 1000
"""Of one team; the oldest go first."""

_STORE: Final = """
local now = redis.call('TIME')
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('ZADD', KEYS[2], now[1] * 1000000 + now[2], KEYS[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
local over = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[3])
if over > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[2], over)
  for i = 1, #oldest, 2 do redis.call('DEL', oldest[i]) end
end
"""
"""By Valkey's clock: each gateway's own would let those of the machine that was started last look the oldest."""
_FAILURES: Final = (RedisError, OSError, TimeoutError)
_JSON: Final = ((b"content-type", b"application/json"),)
_log = structlog.get_logger("descant_gateway.response_cache")


class ResponseCache:
    """Owns its connection to Valkey, which opens with the first request that may be cached."""

    def __init__(self, valkey_url: Secret, pepper: Secret, timeout_s: float, *, max_entries: int = MAX_ENTRIES) -> None:
        self._valkey = connect(valkey_url.reveal())
        self._secret = hmac.digest(pepper.reveal().encode(), b"descant response cache", "sha256")
        self._timeout_s = timeout_s
        self._max_entries = max_entries
        self._storing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        await asyncio.gather(*self._storing, return_exceptions=True)
        await self._valkey.aclose()

    async def answer(self, admitted: AdmittedCall, relay: Callable[[], Awaitable[None]]) -> None:
        """From the cache, if the team has one, or by `relay`. A Valkey that is away is a miss."""
        ttl_s = admitted.caller.team.response_cache_s
        if ttl_s is None or not _is_repeatable(admitted):
            await relay()
            return
        name = self._name_of(admitted)
        reply = await self._find(admitted.tenant, name)
        if reply is not None:
            await _answer_again(admitted, reply)
            return
        admitted.call.add_reply_headers({CACHE_HEADER: "miss"})
        admitted.meter.keeps_reply = True
        await relay()
        kept = admitted.meter.whole_reply
        if kept is not None and len(kept) <= MAX_REPLY_BYTES and admitted.meter.model is admitted.model:
            task = asyncio.create_task(self._store(admitted.tenant, name, kept, ttl_s), name="response-cache")
            self._storing.add(task)
            task.add_done_callback(self._storing.discard)

    def _name_of(self, admitted: AdmittedCall) -> str:
        """Says nothing of the request to who reads it: it is made with the team's secret."""
        model, request = admitted.model, admitted.request
        said = (admitted.call.endpoint, model.name, model.upstream_name, msgspec.json.encode(request.members))
        digest = hmac.digest(self._team_secret(admitted.tenant), msgspec.msgpack.encode(said), "sha256").hex()
        return f"{_tag(admitted.tenant)}:r:{digest}"

    async def _find(self, tenant: str, name: str) -> bytes | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                sealed = cast("bytes | None", await self._valkey.get(name))
        except _FAILURES:
            return None
        return None if sealed is None else self._unseal(tenant, name, sealed)

    async def _store(self, tenant: str, name: str, reply: bytes, ttl_s: int) -> None:
        nonce = os.urandom(NONCE_LENGTH)
        sealed = nonce + self._cipher(tenant).encrypt(nonce, reply, name.encode())
        keys = (name, f"{_tag(tenant)}:index")
        arguments: tuple[Any, ...] = (sealed, ttl_s, self._max_entries)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._valkey.eval(_STORE, len(keys), *keys, *arguments)
        except _FAILURES as error:
            _log.info("a reply was not cached", why=type(error).__name__)

    def _unseal(self, tenant: str, name: str, sealed: bytes) -> bytes | None:
        try:
            return self._cipher(tenant).decrypt(sealed[:NONCE_LENGTH], sealed[NONCE_LENGTH:], name.encode())
        except (InvalidTag, ValueError):
            _log.warning("a cached reply was changed; asking a backend")
            return None

    def _cipher(self, tenant: str) -> AESGCM:
        return AESGCM(hashlib.sha256(b"cipher" + self._team_secret(tenant)).digest())

    def _team_secret(self, tenant: str) -> bytes:
        return hmac.digest(self._secret, tenant.encode(), "sha256")


def _tag(tenant: str) -> str:
    """All of a team's entries in one slot of a cluster."""
    return f"descant:{{cache:{tenant[:32]}}}"


def _is_repeatable(admitted: AdmittedCall) -> bool:
    request = admitted.request
    if request.stream or not request.kind.generates or not _is_determined(request):
        return False
    return b"no-cache" not in admitted.call.headers.get(b"cache-control", b"")


def _is_determined(request: InferenceRequest) -> bool:
    """Asked for in a way that gives the same answer again, as far as the model can."""
    temperature = bytes(request.members.get("temperature", b""))
    seed = bytes(request.members.get("seed", b"null"))
    return temperature in (b"0", b"0.0") or seed != b"null"


async def _answer_again(admitted: AdmittedCall, reply: bytes) -> None:
    meter = admitted.meter
    meter.backend, meter.status = CACHE_BACKEND, 200
    meter.mark_first_byte()
    admitted.call.add_reply_headers({CACHE_HEADER: "hit"})
    await admitted.call.answer(200, _JSON, reply)
