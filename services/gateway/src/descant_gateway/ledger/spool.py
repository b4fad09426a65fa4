"""Where usage records wait on disk while PostgreSQL is away: a folder of segments, each written once and whole."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgspec

from descant_gateway.usage.record import decode_line

SEGMENT: Final = ".jsonl"


class LedgerSpool:
    """Its methods touch the disk: call them in a thread.

    A segment appears under its name only when it is complete and on the disk, and never changes afterwards. So a crash
    leaves no half line, and several gateways may share the folder: replaying a segment twice writes its charges once.
    What a failing disk makes of a segment costs only the lines that it hit.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, lines: Sequence[bytes]) -> None:
        """Returns when the records are on the disk. Raises OSError."""
        self._write_segment(self._folder, lines)

    def segments(self) -> list[Path]:
        """Oldest first."""
        return sorted(self._folder.glob(f"*{SEGMENT}"))

    def read(self, segment: Path) -> tuple[list[bytes], int]:
        """Its records' lines, and how many can't be read. Empty if another gateway has replayed it. Raises OSError."""
        try:
            lines = segment.read_bytes().splitlines()
        except FileNotFoundError:
            return [], 0
        whole = [line for line in lines if _is_record(line)]
        return whole, len(lines) - len(whole)

    def remove(self, segment: Path) -> None:
        segment.unlink(missing_ok=True)

    def set_aside(self, segment: Path) -> None:
        """Out of the way of the others, kept for a person to look at."""
        segment.rename(self._rejected_folder() / segment.name)

    def reject(self, line: bytes) -> None:
        """Keeps a record that PostgreSQL refuses for what it holds."""
        self._write_segment(self._rejected_folder(), [line])

    def _rejected_folder(self) -> Path:
        folder = self._folder / "rejected"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _write_segment(self, folder: Path, lines: Sequence[bytes]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid4().hex}{SEGMENT}"
        unfinished = path.with_suffix(".part")
        try:
            with unfinished.open("xb") as file:
                file.write(b"\n".join(lines) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        _sync_folder(folder)


def _is_record(line: bytes) -> bool:
    try:
        decode_line(line)
    except msgspec.DecodeError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Makes the new name in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
