"""A file beside the records in memory: what a killed gateway process had of them is read from it by the next one.

A line is handed to the operating system before the next request is looked at, so only the end of the machine itself
can lose it, never that of the process. A charge has a line when it begins and another when it ends; where only the
first is found, the process died while it served, and that line is what gets booked.
"""

import contextlib
import errno
import fcntl
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self
from uuid import UUID, uuid4

import msgspec
import structlog

from descant_gateway.ledger.spool import LedgerSpool
from descant_gateway.usage.record import Outcome, UsageRecord, decode_line, encode_line

MAX_BYTES: Final = 1 << 20
"""Longer files are sealed, so that they can be removed when PostgreSQL has their records."""
_LOCK: Final = ".lock"
_JOURNAL: Final = ".journal"

_log = structlog.get_logger(__name__)


class LedgerJournal:
    """One process's own. Its lock says that the process lives: the operating system gives it up with the process.

    A disk that refuses it costs only safety: records are then in memory until they are in PostgreSQL.
    """

    def __init__(self, folder: Path) -> None:
        self.is_written = False
        """False while the disk refuses it."""
        self._folder = folder
        self._owner = uuid4().hex
        self._begun: dict[UUID, bytes] = {}
        self._sealed: deque[tuple[Path, int]] = deque()
        self._num_files = 0
        self._lock = -1
        self._file: _JournalFile | None = None

    def open(self) -> None:
        """Does not raise: without a journal the gateway serves all the same."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self._file = self._next_file()
        except OSError as error:
            _log.error("no journal: usage records are in memory only until they are stored", error=str(error))
        else:
            self.is_written = True

    def begin(self, charge_id: UUID, line: bytes) -> None:
        line += b"\n"
        self._begun[charge_id] = line
        self._write(line)

    def end(self, charge_id: UUID, line: bytes) -> None:
        self._begun.pop(charge_id, None)
        self._write(line + b"\n")

    def seal_if_large(self, num_ended: int) -> None:
        """Goes on in a new file, which knows what runs now, if the old one is large.

        The old one is removed when `num_ended` records are stored: all that ended until now.
        """
        if self._file is None or self._file.size <= MAX_BYTES:
            return
        try:
            following = self._next_file()
            following.write(b"".join(self._begun.values()))
        except OSError as error:
            self._report(error)
            return
        self._file.close()
        self._sealed.append((self._file.path, num_ended))
        self._file = following

    def stored(self, num_stored: int, *, is_all: bool) -> None:
        """So many of the records that ended are safe elsewhere.

        Does not raise: what the disk won't let go of now is tried again with the next ones. Read by another process it
        does no harm, for the ledger has its charges.
        """
        try:
            while self._sealed and self._sealed[0][1] <= num_stored:
                self._sealed[0][0].unlink(missing_ok=True)
                self._sealed.popleft()
            if is_all and not self._begun and self._file is not None and self._file.size:
                self._file.clear()
        except OSError as error:
            self._report(error)

    def close(self, *, is_all_stored: bool) -> None:
        """Leaves what is not stored for the next process to find. Does not raise."""
        if self._file is None:
            return
        self._file.close()
        try:
            if is_all_stored:
                for path in (*(path for path, _ in self._sealed), self._file.path, self._lock_path):
                    path.unlink(missing_ok=True)
        except OSError as error:
            self._report(error)
        os.close(self._lock)
        self._file = None

    def _take_lock(self) -> int:
        """Under another name if a process that looks for dead ones was quicker to lock the new file. Raises OSError."""
        while (lock := _try_lock(self._lock_path, create=True)) < 0:
            self._owner = uuid4().hex
        return lock

    @property
    def _lock_path(self) -> Path:
        return self._folder / f"{self._owner}{_LOCK}"

    def _next_file(self) -> "_JournalFile":
        self._num_files += 1
        return _JournalFile(self._folder / f"{self._owner}-{self._num_files:06}{_JOURNAL}")

    def _write(self, line: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line)
        except OSError as error:
            self._report(error)
        else:
            self.is_written = True

    def _report(self, error: OSError) -> None:
        if self.is_written:
            _log.error("the ledger's journal can't be written: records are in memory only", error=str(error))
        self.is_written = False


class _JournalFile:
    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self.size = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, lines: bytes) -> None:
        """All or nothing. Raises OSError."""
        written = os.write(self._descriptor, lines) if lines else 0
        if written < len(lines):  # the disk is full: half a line must not stand before the next
            os.ftruncate(self._descriptor, self.size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self.size += written

    def clear(self) -> None:
        """Raises OSError."""
        os.ftruncate(self._descriptor, 0)
        self.size = 0

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of an earlier write; the descriptor is gone all the same
            os.close(self._descriptor)


class DeadJournals:
    """The files of one process that is gone, held against any other that looks for them."""

    def __init__(self, folder: Path, owner: str, lock: int) -> None:
        self._lock_path = folder / f"{owner}{_LOCK}"
        self._lock = lock
        self._files = sorted(folder.glob(f"{owner}-*{_JOURNAL}"))

    @classmethod
    def find(cls, folder: Path) -> Iterator[Self]:
        """Raises OSError."""
        for path in sorted(folder.glob(f"*{_LOCK}")):
            lock = _try_lock(path, create=False)
            if lock >= 0:
                yield cls(folder, path.name.removesuffix(_LOCK), lock)

    def records(self) -> tuple[list[UsageRecord], int]:
        """One for each charge, and how many lines can't be read: torn off by the end of the machine. Raises OSError."""
        charges: dict[UUID, UsageRecord] = {}
        num_damaged = 0
        for line in (line for path in self._files for line in path.read_bytes().splitlines()):
            try:
                record = decode_line(line)
            except msgspec.DecodeError:
                num_damaged += 1
                continue
            known = charges.get(record.charge_id)
            if known is None or known.outcome is Outcome.INTERRUPTED:
                charges[record.charge_id] = record
        return list(charges.values()), num_damaged

    def remove(self) -> None:
        for path in self._files:
            path.unlink(missing_ok=True)
        self._lock_path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._lock)


def recover(folder: Path, spool: LedgerSpool) -> int:
    """Moves to the spool what processes that died left in their journals. Raises OSError."""
    num_records = 0
    for dead in DeadJournals.find(folder):
        try:
            records, num_damaged = dead.records()
            if num_damaged:
                _log.error("lines of a dead gateway's journal can't be read", num_lines=num_damaged)
            if records:
                spool.write([encode_line(record) for record in records])
            dead.remove()
        finally:
            dead.close()
        num_records += len(records)
    return num_records


def _try_lock(path: Path, *, create: bool) -> int:
    """An open file that is locked; -1 if another process holds it, or removed it meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return -1
