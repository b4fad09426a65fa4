"""The output file: what an earlier run left in it, and answers as they come."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class BadOutput(ValueError):
    """The output file holds something else than answers; nothing was changed."""


class OutputFile:
    """Appends whole lines, each in one write. A line that an interruption tore off is removed when it is opened.

    Raises:
        BadOutput: from `open`, a whole line is no answer: the file is another one's.
    """

    def __init__(self, path: Path, finished: set[str], num_failed: int) -> None:
        self.finished = finished
        """custom_ids answered by earlier runs; `id` for answers without one."""
        self.num_failed = num_failed
        """How many of these have no answer with status 200."""
        self._file = path.open("ab", buffering=0)

    @classmethod
    def open(cls, path: Path) -> Self:
        if not path.exists():
            return cls(path, set(), 0)
        finished: set[str] = set()
        num_failed = end = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                key, is_ok = _answered(line, f"{path}, line {number}")
                finished.add(key)
                num_failed += not is_ok
                end += len(line)
        if end < path.stat().st_size:
            os.truncate(path, end)
        return cls(path, finished, num_failed)

    def write(self, line: bytes) -> None:
        self._file.write(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _answered(line: bytes, place: str) -> tuple[str, bool]:
    """(what it answers, whether with success)."""
    try:
        fields = json.loads(line)
        key = fields["custom_id"] if fields["custom_id"] is not None else fields["id"]
        response = fields["response"]
        return str(key), response is not None and response["status_code"] == 200
    except (ValueError, KeyError, TypeError) as error:
        raise BadOutput(
            f"{place} is no answer of a batch: {error!r}. Give another file with -o, or move this one away."
        ) from error
