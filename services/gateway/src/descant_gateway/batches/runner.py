"""Runs batches: claims lines while there is room, keeps their leases, begins and ends batches. One in every gateway."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Final

import msgspec
import structlog
from msgspec import Struct
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.batches.beginning import begin, give_up
from descant_gateway.batches.line import LineReply, result_of, serve_line, unanswered
from descant_gateway.batches.postponed import Postponed
from descant_gateway.batches.window import Window, serves_others
from descant_gateway.identity.authenticate import Caller, holder_of
from descant_gateway.pipeline import Gateway
from descant_gateway.sealing import UnsealError
from descant_gateway.store import batch_endings, batch_work
from descant_gateway.store.batch_work import ClaimedLines, Line
from descant_gateway.store.session import is_outage
from descant_gateway.store.vault import Vault, Vaults
from descant_wire.errors import ApiError, server_error

PRIORITY: Final = -1000
"""Below every team's own: lines wait for all that somebody waits for, in the gateway and in the engine."""
POLL_S: Final = 1.0
SWEEP_S: Final = 600.0
MAX_BEGINNINGS: Final = 5
"""A batch that can't be begun is failed after so many tries of one gateway."""
_RETRY_S: Final = 0.5
_MAX_REFUSALS: Final = 5
"""What PostgreSQL was there for and would not write so often is given up."""
_NO_KEY_WAIT_S: Final = 10.0
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
        self._running: dict[asyncio.Task[None], Line] = {}
        self._window = Window(settings.concurrency)
        self._wake = asyncio.Event()
        self._writes = asyncio.Semaphore(_MAX_WRITES)
        self._beginnings = Postponed()
        self._endings = Postponed()
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
            is_busy = await _tried(step)
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
        try:
            vault = await self._vaults.of(claimed.team_id)
        except (UnsealError, *_AWAY) as error:
            _log.error("a team's key can't be read: its batches wait", team_id=str(claimed.team_id), error=repr(error))
            for line in claimed.lines:
                self._start(line, self._put_back(line, _NO_KEY_WAIT_S, has_failed=False))
            return False
        for line in claimed.lines:
            self._start(line, self._run(line, claimed, vault))
        return True

    def _start(self, line: Line, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._running[task] = line
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
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
        """Who has lost the line in the meantime has lost its charge as well."""
        result = batch_work.result_as_stored(vault, line.batch_id, line.position, result_of(line, reply))

        async def write(connection: AsyncConnection) -> None:
            is_failed = reply.status >= 400
            await batch_work.answer(connection, line, result, reply.record, reply.usage, is_failed=is_failed)

        await self._write(line, write)

    async def _put_back(self, line: Line, wait_s: float, *, has_failed: bool) -> None:
        async def write(connection: AsyncConnection) -> None:
            await batch_work.put_back(connection, line, wait_s, has_failed=has_failed)
            if not has_failed:
                await batch_work.pause(connection, line.batch_id, wait_s)

        await self._write(line, write)

    async def _write(self, line: Line, write: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        """Through an outage of PostgreSQL too. Raises what it refuses again and again."""
        num_refusals = 0
        while True:
            try:
                async with self._writes, self._engine.begin() as connection:
                    await write(connection)
                return
            except _AWAY as error:
                num_refusals += not is_outage(error)
                if num_refusals == _MAX_REFUSALS:
                    raise
                _log.warning("a line can't be written yet", batch_id=line.batch_id, error=repr(error))
            await asyncio.sleep(_RETRY_S)

    async def _renew(self) -> bool:
        if self._running:
            async with self._engine.begin() as connection:
                lines = list(self._running.values())
                await batch_work.renew(connection, self._owner, lines, self._settings.lease_s)
        return False

    # Batches

    async def _begin_and_end(self) -> bool:
        """One that fails stops no other."""
        return any([await _tried(step) for step in (self._begin_next, self._end_next, self._sweep)])

    async def _begin_next(self) -> bool:
        async with self._engine.begin() as connection:
            batch = await batch_endings.next_unchecked(connection, self._beginnings.batch_ids)
            if batch is None:
                return False
            if self._beginnings.num_failures(batch.id) >= MAX_BEGINNINGS:
                _log.error("a batch that can't be begun is failed", batch_id=batch.id)
                await give_up(connection, batch)
            else:
                with self._beginnings.trying(batch.id):
                    await begin(connection, await self._vaults.of(batch.team_id), batch)
        self._wake.set()
        return True

    async def _end_next(self) -> bool:
        async with self._engine.begin() as connection:
            batch = await batch_endings.next_ending(connection, self._endings.batch_ids)
            if batch is None:
                return False
            with self._endings.trying(batch.id):  # as often as it takes: its answers are paid for
                vault, keep = await self._vaults.of(batch.team_id), self._settings.keep
                status = await batch_endings.end(connection, vault, batch, unanswered, new_file_id, keep)
        _log.info("batch ended", batch_id=batch.id, status=status)
        return True

    async def _sweep(self) -> bool:
        if time.monotonic() - self._swept_at >= SWEEP_S:
            self._swept_at = time.monotonic()
            async with self._engine.begin() as connection:
                await batch_endings.sweep(connection, self._settings.keep)
        return False


async def _tried(step: Callable[[], Awaitable[bool]]) -> bool:
    """Whether it did something. Whatever it raises is logged: a bug in one batch must not end all others."""
    try:
        return await step()
    except Exception as error:
        if is_outage(error):
            _log.warning("batches can't be read or written", error=repr(error))
        else:
            _log.exception("a step of the batches failed")
        return False


def new_file_id() -> str:
    return f"file-{uuid.uuid4().hex}"
