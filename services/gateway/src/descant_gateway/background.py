"""Responses that are made in the background: begun, answered at once, and served through the pipeline without a client.

Who makes one holds a lease on its row. A response whose lease ran out died with its gateway; one without a lease, that
this process still makes, was cancelled.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.detached_call import Exchange, detached_call
from descant_gateway.dialects import Client
from descant_gateway.dialects.responses import MadeResponse, ResponsesDialect, ResponseTranslation
from descant_gateway.endpoints import RESPONSES
from descant_gateway.identity.authenticate import Caller
from descant_gateway.limits.throttle import Throttle
from descant_gateway.pipeline import Gateway, serve_caller
from descant_gateway.store import responses as store
from descant_gateway.store.responses import StoredResponse
from descant_gateway.store.vault import Vault, Vaults
from descant_wire.errors import ApiError, ErrorBody, ErrorDetail, server_error, service_unavailable

LEASE_S: Final = 15.0
LOOK_S: Final = 1.0
"""How often leases are renewed, and cancellations seen."""
MAX_RUNNING: Final = 1000
"""In this process,"""
MAX_RUNNING_OF_TEAM: Final = 200
"""and of them one team's."""
MAX_BEGUN_PER_MINUTE: Final = 600
"""By one team. Limits are asked when a response's turn has come, and its input is stored before that."""
_RETRY_S: Final = 0.5
_IS_MADE: Final = ("queued", "in_progress")
_AWAY: Final = (SQLAlchemyError, OSError, TimeoutError)
_JSON: Final = ((b"content-type", b"application/json"),)
_log = structlog.get_logger("descant_gateway.background")


class BackgroundResponses:
    """Owns those that this process makes."""

    def __init__(self, dialect: ResponsesDialect, engine: AsyncEngine, vaults: Vaults, gateway: Gateway) -> None:
        self._dialect = dialect
        self._engine = engine
        self._vaults = vaults
        self._gateway = gateway
        self._running: dict[str, asyncio.Task[None]] = {}
        self._running_of: Counter[UUID] = Counter()
        """By team."""
        self._throttle = Throttle()
        self._watch = asyncio.create_task(self._watch_leases())

    async def close(self) -> None:
        """What is not done has failed: nobody else has what was generated so far."""
        tasks = [self._watch, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def begin(self, client: Client, caller: Caller) -> None:
        """Answers the client. Raises ApiError: 503, too many run here, or the database is away; 429, too many of the
        team's do.
        """
        translation = client.translation
        assert isinstance(translation, ResponseTranslation)
        made = translation.made
        self._check_share(made.team_id)
        queued = MadeResponse(made.response | {"status": "queued"}, made.team_id, made.items)
        if len(self._running) >= MAX_RUNNING or not await self._dialect.keep(queued, LEASE_S):
            raise service_unavailable("No response can be begun in the background right now.", retry_after_s=2)
        response_id = made.response["id"]
        task = asyncio.create_task(self._run(ResponseTranslation(translation.body, made, self), caller))
        self._running[response_id] = task
        self._running_of[made.team_id] += 1
        task.add_done_callback(lambda _: self._forget(response_id, made.team_id))
        client.translation = None  # its answer is a response already
        await client.answer(200, _JSON, msgspec.json.encode(queued.response))

    def _check_share(self, team_id: UUID) -> None:
        self._throttle.take("background", team_id.hex, MAX_BEGUN_PER_MINUTE)
        if self._running_of[team_id] >= MAX_RUNNING_OF_TEAM:
            message = f"{MAX_RUNNING_OF_TEAM} responses of this team are being made in the background here already."
            detail = ErrorDetail(message=message, type="requests", code="rate_limit_exceeded")
            raise ApiError(429, detail, retry_after_s=2)

    def _forget(self, response_id: str, team_id: UUID) -> None:
        self._running.pop(response_id, None)
        self._running_of -= Counter({team_id: 1})

    async def keep(self, made: MadeResponse) -> bool:
        """Stores a response that is done, through an outage of the database too."""
        while not await self._has_stored(made):  # noqa: ASYNC110
            await asyncio.sleep(_RETRY_S)
        return True

    async def _run(self, translation: ResponseTranslation, caller: Caller) -> None:
        made = translation.made
        try:
            failure = await self._serve(translation, caller)
        except asyncio.CancelledError:
            await self._has_stored(_failed(made, "The gateway that made it was stopped."))
            raise
        if failure is not None:
            await self.keep(_failed(made, failure.message, failure.code))

    async def _serve(self, translation: ResponseTranslation, caller: Caller) -> ErrorDetail | None:
        """Why nothing came of it; None once it is stored."""
        response_id, exchange = translation.made.response["id"], Exchange(translation.body)
        call = detached_call(RESPONSES, response_id, exchange, _Translated(self._dialect, translation))
        try:
            await serve_caller(call, caller, self._gateway.feed.current, self._gateway)
        except ApiError as error:
            return error.detail
        except Exception:
            _log.exception("a response in the background failed", response_id=response_id)
            return server_error().detail
        return None if exchange.status < 400 else _detail_of(bytes(exchange.reply))

    async def _has_stored(self, made: MadeResponse) -> bool:
        response = made.response
        try:
            vault = await self._vaults.of(made.team_id)
            async with self._engine.begin() as connection:
                ended = store.fail if response["status"] == "failed" else store.finish
                await ended(connection, vault, response["id"], msgspec.json.encode(response))
        except _AWAY as error:
            _log.warning("a response can't be stored yet", response_id=response["id"], error=repr(error))
            return False
        return True

    async def _watch_leases(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(*_AWAY):
                await self._renew()

    async def _renew(self) -> None:
        if not (ids := list(self._running)):
            return
        async with self._engine.begin() as connection:
            wanted = await store.renew(connection, ids, LEASE_S)
        for response_id in set(ids) - wanted:
            if (task := self._running.get(response_id)) is not None:
                task.cancel()


class _Translated:
    """The dialect of a call whose request was translated before."""

    def __init__(self, dialect: ResponsesDialect, translation: ResponseTranslation) -> None:
        self._dialect = dialect
        self._translation = translation

    def authorization(self, headers: Mapping[bytes, bytes]) -> bytes | None:
        return self._dialect.authorization(headers)

    def reply_headers(self, request_id: str) -> tuple[tuple[bytes, bytes], ...]:
        return self._dialect.reply_headers(request_id)

    def error(self, status: int, body: bytes) -> bytes:
        return self._dialect.error(status, body)

    async def translate(self, body: bytes, caller: Caller) -> ResponseTranslation:
        return self._translation


def body_now(stored: StoredResponse) -> bytes:
    """The response as it is to be shown: one whose gateway died has failed."""
    if stored.lease_until is None or stored.lease_until > datetime.now(UTC):
        return stored.body
    response = msgspec.json.decode(stored.body)
    return msgspec.json.encode(response | _failure("The gateway that made it has died."))


async def cancelled(engine: AsyncEngine, vault: Vault, response_id: str) -> bytes | None:
    """The response, which is made no further; None if it was never in the background. Raises NotFound."""
    async with engine.begin() as connection:
        stored = await store.find(connection, vault, response_id)
        response = msgspec.json.decode(stored.body)
        if not response.get("background"):
            return None
        if response["status"] not in _IS_MADE:
            return stored.body
        body = msgspec.json.encode(response | {"status": "cancelled"})
        is_first = await store.finish(connection, vault, response_id, body)
        return body if is_first else (await store.find(connection, vault, response_id)).body


def _failed(made: MadeResponse, message: str, code: str | None = None) -> MadeResponse:
    return MadeResponse(made.response | _failure(message, code), made.team_id, made.items)


def _failure(message: str, code: str | None = None) -> dict[str, Any]:
    return {"status": "failed", "error": {"code": code or "server_error", "message": message}}


def _detail_of(body: bytes) -> ErrorDetail:
    try:
        return msgspec.json.decode(body, type=ErrorBody).error
    except msgspec.MsgspecError:
        return server_error().detail
