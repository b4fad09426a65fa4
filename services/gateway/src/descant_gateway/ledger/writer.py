"""Writes usage records to the ledger, off the request path: in batches, and through any outage exactly once."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path
from typing import Final
from uuid import uuid4

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.ledger.journal import LedgerJournal, recover
from descant_gateway.ledger.spool import LedgerSpool
from descant_gateway.store import ledger
from descant_gateway.store.session import is_outage, is_rejection
from descant_gateway.usage.record import UsageRecord, encode_line

BATCH_SIZE: Final = 1000
BATCH_DELAY_S: Final = 0.25
RETRY_S: Final = 1.0
MAX_PENDING: Final = 100_000
"""Reached only if neither PostgreSQL nor the disk takes anything."""

log = structlog.get_logger(__name__)


class LedgerWriter:
    """A record is in memory and in the journal for a quarter of a second, then in PostgreSQL, or in the spool until it
    can be there.

    Writing is at least once, and the ledger's unique charge id makes that exactly once.
    """

    def __init__(self, engine: AsyncEngine, spool_folder: Path, *, retry_s: float = RETRY_S) -> None:
        self.num_lost = 0
        """Records that nothing could take; each was logged in full."""
        self.num_recovered = 0
        """Records that were found in the journals of processes that died."""
        self._engine = engine
        self._spool = LedgerSpool(spool_folder)
        self._retry_s = retry_s
        self._folder = spool_folder
        self._journal = LedgerJournal(spool_folder)
        self._id = uuid4()
        self._pending: deque[bytes] = deque()
        self._num_appended = 0
        self._num_stored = 0
        self._stored = asyncio.Condition()
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._spool_is_empty = True
        self._is_away = False
        self._retry_at = 0.0
        self._partitioned_on: date | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    @property
    def is_journalling(self) -> bool:
        """False while the disk refuses the journal: then a record is in memory only, until it is stored."""
        return self._journal.is_written

    @property
    def is_spooling(self) -> bool:
        """True while records wait on disk for PostgreSQL."""
        return not self._spool_is_empty

    async def start(self) -> None:
        """Begins to write, with what earlier runs left behind first."""
        self._journal.open()
        await self.recover()
        self._spool_is_empty = not await asyncio.to_thread(self._spool.segments)
        self._task = asyncio.create_task(self._run(), name="ledger writer")

    async def recover(self) -> None:
        """Moves what processes that died left in their journals to the spool, from where it is written."""
        try:
            num_recovered = await asyncio.to_thread(recover, self._folder, self._spool)
        except OSError as error:
            log.error("cannot read the journals of gateways that died; trying again", error=str(error))
            return
        if num_recovered:
            self.num_recovered += num_recovered
            log.warning("found usage records of a gateway that died", num_records=num_recovered)
            self._spool_is_empty = False
            self._wake.set()

    def begin(self, record: UsageRecord) -> None:
        """Notes what is to be booked if this process dies before it appends the charge's record."""
        self._journal.begin(record.charge_id, encode_line(record))

    def append(self, record: UsageRecord) -> None:
        """Takes the record at once; never waits for a database and never raises."""
        line = encode_line(record)
        self._journal.end(record.charge_id, line)
        if len(self._pending) >= MAX_PENDING:
            self._lose(line)
            return
        self._num_appended += 1
        self._pending.append(line)
        self._wake.set()
        if len(self._pending) >= BATCH_SIZE:
            self._hurry.set()

    async def flush(self) -> None:
        """Returns when all that was appended is in PostgreSQL, or in the spool if PostgreSQL is away."""
        target = self._num_appended
        self._wake.set()
        self._hurry.set()
        async with self._stored:
            await self._stored.wait_for(lambda: self._num_stored >= target)

    async def close(self, *, timeout_s: float = 30.0) -> None:
        """Flushes and stops. What no place takes within the time is logged in full."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self.flush()
        except TimeoutError:
            log.error("neither PostgreSQL nor the spool takes usage records", num_records=len(self._pending))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        self._journal.close(is_all_stored=not self._pending)
        while self._pending and not self._journal.is_written:
            self._lose(self._pending.popleft())

    async def _run(self) -> None:
        while True:
            await self._wait_for_batch()
            if time.monotonic() >= self._retry_at:
                await self._replay_spool()
            while self._pending:
                await self._store_batch()
            self._hurry.clear()

    async def _wait_for_batch(self) -> None:
        """Until there is something to write: a full batch, or a part of one after the delay."""
        if self._spool_is_empty:
            await self._wake.wait()
        else:
            await _wait_at_most(self._wake, max(0.0, self._retry_at - time.monotonic()))
        await _wait_at_most(self._hurry, BATCH_DELAY_S)
        self._wake.clear()

    async def _store_batch(self) -> None:
        """Moves up to BATCH_SIZE records out of memory; the deque lets go of them only when they are safe."""
        self._journal.seal_if_large(self._num_appended)
        batch = list(islice(self._pending, BATCH_SIZE))
        if not (await self._insert(batch) or await self._write_to_spool(batch)):
            await asyncio.sleep(self._retry_s)
            return
        for _ in batch:
            self._pending.popleft()
        async with self._stored:
            self._num_stored += len(batch)
            self._stored.notify_all()
        self._journal.stored(self._num_stored, is_all=not self._pending)

    async def _insert(self, lines: Sequence[bytes]) -> bool:
        """False if PostgreSQL is away: it is asked again after `retry_s`."""
        if time.monotonic() < self._retry_at:
            return False
        try:
            await self._insert_all(lines)
        except Exception as error:  # Whatever it is, it must cost no record: they go to the spool.
            self._report_outage(error)
            self._retry_at = time.monotonic() + self._retry_s
            return False
        self._report_recovery()
        return True

    async def _insert_all(self, lines: Sequence[bytes]) -> None:
        """Sets aside each record that PostgreSQL refuses for what it holds, so that it can't block the others."""
        try:
            await self._ensure_partitions()
            async with self._engine.begin() as connection:
                await ledger.insert_lines(connection, lines, self._id)
        except DBAPIError as error:
            if not is_rejection(error):
                raise
            if len(lines) == 1:
                log.error("PostgreSQL refuses a usage record", error=str(error.orig), record=lines[0].decode())
                await asyncio.to_thread(self._spool.reject, lines[0])
                return
            middle = len(lines) // 2
            await self._insert_all(lines[:middle])
            await self._insert_all(lines[middle:])

    async def _ensure_partitions(self) -> None:
        """Once a day, a week ahead, whatever becomes of the records that come then. A day without a partition is not an
        error: the default one takes its rows."""
        today = ledger.utc_day(datetime.now(UTC))
        if self._partitioned_on == today:
            return
        try:
            async with self._engine.begin() as connection:
                await ledger.ensure_partitions(connection, today)
        except DBAPIError as error:
            if is_outage(error):
                raise
            log.error("cannot make the ledger's next partitions; the default one takes its rows", error=str(error))
        self._partitioned_on = today

    async def _write_to_spool(self, lines: Sequence[bytes]) -> bool:
        try:
            await asyncio.to_thread(self._spool.write, lines)
        except OSError as error:
            log.error("cannot write to the ledger spool; usage records stay in memory", error=str(error))
            return False
        self._spool_is_empty = False
        return True

    async def _replay_spool(self) -> None:
        """Oldest first, until PostgreSQL fails again."""
        if self._spool_is_empty:
            return
        num_recovered = self.num_recovered
        try:
            for segment in await asyncio.to_thread(self._spool.segments):
                if not await self._replay_segment(segment):
                    return
        except OSError as error:
            log.error("cannot read the ledger spool; trying again", error=str(error))
            self._retry_at = time.monotonic() + self._retry_s
            return
        self._spool_is_empty = self.num_recovered == num_recovered  # else more has come meanwhile

    async def _replay_segment(self, segment: Path) -> bool:
        lines, num_damaged = await asyncio.to_thread(self._spool.read, segment)
        for start in range(0, len(lines), BATCH_SIZE):
            if not await self._insert(lines[start : start + BATCH_SIZE]):
                return False
        if num_damaged:
            log.error("the ledger spool is damaged; set aside", segment=str(segment), num_lines=num_damaged)
            await asyncio.to_thread(self._spool.set_aside, segment)
        else:
            await asyncio.to_thread(self._spool.remove, segment)
        return True

    def _lose(self, line: bytes) -> None:
        self.num_lost += 1
        log.error("a usage record could not be stored", record=line.decode())

    def _report_outage(self, error: Exception) -> None:
        if not self._is_away:
            log.warning("the ledger cannot be written; usage records go to the spool", error=str(error))
        self._is_away = True

    def _report_recovery(self) -> None:
        if self._is_away:
            log.info("the ledger can be written again")
        self._is_away = False


async def _wait_at_most(event: asyncio.Event, seconds: float) -> None:
    # Not asyncio.wait_for: in Python 3.11 it loses a cancellation that comes just when the event is set.
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
