"""Runs batches: claims lines while there is room, keeps their leases, begins and ends batches. One in every gateway."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import msgspec
import structlog
from msgspec import Struct
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.batches.input_file import InputFile
from descant_gateway.batches.line import LineReply, result_of, serve_line, unanswered
from descant_gateway.batches.window import Window, serves_others
from descant_gateway.identity.authenticate import Caller, holder_of
from descant_gateway.pipeline import Gateway
from descant_gateway.sealing import UnsealError
from descant_gateway.store import batch_endings, batch_work, files
from descant_gateway.store.batch_work import ClaimedLines, Line
from descant_gateway.store.batches import StoredBatch
from descant_gateway.store.errors import NotFound
from descant_gateway.store.vault import Vault, Vaults
from descant_wire.batches import BatchFault
from descant_wire.errors import ApiError, server_error

PRIORITY: Final = -1000
"""Below every team's own: lines wait for all that somebody waits for, in the gateway and in the engine."""
POLL_S: Final = 1.0
SWEEP_S: Final = 600.0
_RETRY_S: Final = 0.5
_MAX_WRITES: Final = 3
"""At once: fewer than the pool has connections."""
_AWAY: Final = (SQLAlchemyError, OSError, TimeoutError)

_log = structlog.get_logger("descant_gateway.batches")


class BatchSettings(Struct, frozen=True, kw_only=True):
    concurrency: int
    """Lines at once, in this process."""
    lease_s: float
    """After this, what a gateway that died ran is run by another."""
    keep: timedelta
    """Files and ended batches."""


class BatchRunner:
    """Owns which lines run here. Whatever it knows is in PostgreSQL too: it may die at any moment."""

    def __init__(self, engine: AsyncEngine, vaults: Vaults, gateway: Gateway, settings: BatchSettings) -> None:
        self._vaults = vaults
        self._engine = engine
        self._gateway = gateway
        self._settings = settings
        self._owner = uuid.uuid4()
        self._running: set[asyncio.Task[None]] = set()
        self._window = Window(settings.concurrency)
        self._wake = asyncio.Event()
        self._writes = asyncio.Semaphore(_MAX_WRITES)
        self._swept_at = -SWEEP_S
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        steps = (self._claim, 0.0), (self._begin_and_end, 0.0), (self._renew, self._settings.lease_s / 3)
        self._loops = [asyncio.create_task(self._repeat(step, every_s)) for step, every_s in steps]

    async def close(self) -> None:
        """What runs is broken off and given back: another gateway, or the next start, goes on with it at once."""
        tasks = [*self._loops, *self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(*_AWAY):
            async with self._engine.begin() as connection:
                await batch_work.give_back(connection, self._owner)

    def wake(self) -> None:
        """There is something new."""
        self._wake.set()

    async def _repeat(self, step: Callable[[], Awaitable[bool]], every_s: float) -> None:
        """For as long as `step` does something at once, and then after a while, or when there may be more to do."""
        while True:
            try:
                is_busy = await step()
            except _AWAY as error:
                _log.warning("batches can't be read or written", error=repr(error))
                is_busy = False
            except Exception:  # a bug in one batch must not end all others
                _log.exception("a step of the batches failed")
                is_busy = False
            if every_s:
                await asyncio.sleep(every_s)
            elif not is_busy:
                await self._rest()

    async def _rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._wake.wait()
        self._wake.clear()

    # Lines

    async def _claim(self) -> bool:
        room = self._room()
        if room < 1:
            return False
        async with self._engine.begin() as connection:
            claimed = await batch_work.claim(connection, self._owner, room, self._settings.lease_s)
        if claimed is None:
            return False
        vault = await self._vaults.of(claimed.team_id)
        for line in claimed.lines:
            task = asyncio.create_task(self._run(line, claimed, vault))
            self._running.add(task)
            task.add_done_callback(self._ended)
        return True

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a line of a batch was dropped until its lease ends", exc_info=error)

    def _room(self) -> int:
        """For how many more lines. For none while anybody waits for a turn here: a line would only wait too."""
        gateway, now = self._gateway, time.monotonic()
        if gateway.fair_share.num_waiting:
            return 0
        states = gateway.backends.states.values()
        loads = [report.load for state in states if (report := state.fresh_report(now)) is not None]
        others_run_here = sum(state.num_in_flight for state in states) > len(self._running)
        return self._window.room(
            len(self._running),
            now,
            others_run=others_run_here or any(serves_others(load) for load in loads),
            anybody_waits=any(load.num_waiting for load in loads),
        )

    async def _run(self, line: Line, claimed: ClaimedLines, vault: Vault) -> None:
        reply = await self._reply(line, claimed, vault)
        if (pause_s := reply.pause_s()) is not None:
            await self._put_back(line, pause_s, has_failed=False)
        elif (backoff_s := reply.backoff_s(line.num_failures)) is not None:
            await self._put_back(line, backoff_s, has_failed=True)
        else:
            self._window.note_answer()
            await self._answer(line, reply, vault)

    async def _reply(self, line: Line, claimed: ClaimedLines, vault: Vault) -> LineReply:
        try:
            caller = self._caller(claimed.key_public_id)
            body = batch_work.body_of(line, vault)
        except ApiError as error:
            return LineReply(status=error.status, body=error.body, retry_after_s=None, record=None)
        except UnsealError as error:
            _log.error("a line of a batch can't be read", batch_id=line.batch_id, error=str(error))
            return LineReply(status=500, body=server_error().body, retry_after_s=None, record=None)
        opened = msgspec.structs.replace(line, body=body)
        return await serve_line(opened, claimed.endpoint, caller, self._gateway)

    def _caller(self, key_public_id: str) -> Caller:
        """Raises ApiError for a key that is not valid any more."""
        caller = holder_of(key_public_id, self._gateway.feed.current)
        team = msgspec.structs.replace(caller.team, priority=PRIORITY)
        return msgspec.structs.replace(caller, team=team)

    async def _answer(self, line: Line, reply: LineReply, vault: Vault) -> None:
        """Through an outage of PostgreSQL too. Who has lost the line in the meantime has lost its charge as well."""
        result = batch_work.result_as_stored(vault, line.batch_id, line.position, result_of(line, reply))
        while True:
            try:
                async with self._writes, self._engine.begin() as connection:
                    is_failed = reply.status >= 400
                    await batch_work.answer(connection, line, result, reply.record, reply.usage, is_failed=is_failed)
                return
            except _AWAY as error:
                _log.warning("a line's answer can't be written yet", batch_id=line.batch_id, error=repr(error))
                await asyncio.sleep(_RETRY_S)

    async def _put_back(self, line: Line, wait_s: float, *, has_failed: bool) -> None:
        async with self._writes, self._engine.begin() as connection:
            await batch_work.put_back(connection, line, wait_s, has_failed=has_failed)
            if not has_failed:
                await batch_work.pause(connection, line.batch_id, wait_s)

    async def _renew(self) -> bool:
        if self._running:
            async with self._engine.begin() as connection:
                await batch_work.renew(connection, self._owner, self._settings.lease_s)
        return False

    # Batches

    async def _begin_and_end(self) -> bool:
        async with self._engine.begin() as connection:
            begun = await batch_endings.next_unchecked(connection)
            if begun is not None:
                await _begin(connection, await self._vaults.of(begun.team_id), begun)
        async with self._engine.begin() as connection:
            ended = await batch_endings.next_ending(connection)
            if ended is not None:
                vault, keep = await self._vaults.of(ended.team_id), self._settings.keep
                status = await batch_endings.end(connection, vault, ended, unanswered, new_file_id, keep)
                _log.info("batch ended", batch_id=ended.id, status=status)
        if time.monotonic() - self._swept_at >= SWEEP_S:
            self._swept_at = time.monotonic()
            async with self._engine.begin() as connection:
                await batch_endings.sweep(connection, self._settings.keep)
        if begun is not None:
            self._wake.set()
        return begun is not None or ended is not None


async def _begin(connection: AsyncConnection, vault: Vault, batch: StoredBatch) -> None:
    """Its file is read, and becomes lines, or the faults that the client is told."""
    file = InputFile(batch.endpoint)
    try:
        found = await files.find(connection, batch.team_id, batch.input_file_id)
    except NotFound as error:
        file.faults.append(BatchFault(code="file_not_found", message=str(error)))
    else:
        await file.read(files.read(connection, vault, found.id))
    if file.faults:
        await batch_endings.fail(connection, batch.id, [msgspec.to_builtins(fault) for fault in file.faults])
    else:
        await batch_work.begin(connection, vault, batch.id, file.lines)


def new_file_id() -> str:
    return f"file-{uuid.uuid4().hex}"
