"""The prompts of teams that switched logging on: sealed by a key of the team's, then written off the request path.

It is no ledger: while PostgreSQL is away or too slow the newest prompts are dropped, and counted, before memory is.
"""

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec
import structlog
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.identity.authenticate import Caller
from descant_gateway.request import InferenceRequest
from descant_gateway.store import prompts as store
from descant_gateway.store.prompts import SealedPrompt
from descant_gateway.store.team_keys import TeamKeys

MAX_WAITING_BYTES: Final = 64 << 20
BATCH_SIZE: Final = 200
WRITE_DELAY_S: Final = 0.5
RETENTION_INTERVAL_S: Final = 3600.0

_log = structlog.get_logger("descant_gateway.prompt_log")


class _Waiting(Struct, frozen=True):
    team_id: UUID
    at: datetime
    key_id: UUID
    request_id: str
    model: str
    body: bytes


class PromptLog:
    """Owns the prompts on their way to the database."""

    def __init__(self, engine: AsyncEngine, keys: TeamKeys) -> None:
        self.num_dropped = 0
        self._engine = engine
        self._keys = keys
        self._waiting: deque[_Waiting] = deque()
        self._num_bytes = 0
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._keep_writing(), name="prompt-log"),
            asyncio.create_task(self._keep_tidy(), name="prompt-retention"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(5.0):
                while self._waiting:
                    await self._write_batch()
        except Exception as error:
            _log.warning("logged prompts were dropped at the end", num=len(self._waiting), why=type(error).__name__)

    def record(self, caller: Caller, request: InferenceRequest, request_id: str) -> None:
        """Takes a prompt of a team that wants it. Never waits and never raises."""
        body = msgspec.json.encode(request.members)
        if self._num_bytes + len(body) > MAX_WAITING_BYTES:
            self.num_dropped += 1
            return
        self._num_bytes += len(body)
        entry = _Waiting(caller.team.id, datetime.now(UTC), caller.key.id, request_id, request.model, body)
        self._waiting.append(entry)
        self._wake.set()

    async def _keep_writing(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(WRITE_DELAY_S)
            self._wake.clear()
            try:
                while self._waiting:
                    await self._write_batch()
            except Exception as error:  # Whatever it is: they wait, and beyond the bound are dropped.
                _log.warning("prompts cannot be logged now", why=type(error).__name__, num_dropped=self.num_dropped)
                self._wake.set()

    async def _write_batch(self) -> None:
        batch = [self._waiting[index] for index in range(min(BATCH_SIZE, len(self._waiting)))]
        sealed = [await self._seal(each) for each in batch]
        async with self._engine.begin() as connection:
            await store.add(connection, sealed)
        for each in batch:
            self._waiting.popleft()
            self._num_bytes -= len(each.body)

    async def _seal(self, prompt: _Waiting) -> SealedPrompt:
        cipher = await self._keys.of(prompt.team_id)
        return SealedPrompt(
            team_id=prompt.team_id,
            at=prompt.at,
            key_id=prompt.key_id,
            request_id=prompt.request_id,
            model=prompt.model,
            sealed_request=cipher.seal(prompt.body, name=prompt.request_id),
        )

    async def _keep_tidy(self) -> None:
        """One gateway of all at a time, by a lock of the database."""
        while True:
            try:
                async with self._engine.begin() as connection:
                    await store.drop_old(connection)
            except Exception as error:
                _log.warning("old prompts cannot be dropped now", why=type(error).__name__)
            await asyncio.sleep(RETENTION_INTERVAL_S)


class NoPromptLog:
    """Without a database: nothing is kept."""

    def record(self, caller: Caller, request: InferenceRequest, request_id: str) -> None:
        """Forgets it."""


NO_PROMPT_LOG: Final = NoPromptLog()
