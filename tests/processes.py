"""Python processes of a test's own, ended whatever happens to it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Seen = TypeVar("Seen")
START_S = 120.0
END_S = 20.0


@dataclass
class LoggedProcess:
    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, look: Callable[[], Seen | None], seconds: float = START_S) -> Seen:
        """What `look` returns once it is something. Asserts that the process lives until then."""
        deadline = time.monotonic() + seconds
        while (seen := look()) is None:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return seen


@contextmanager
def running_process(
    arguments: Sequence[str], log: Path, settings: Mapping[str, str] | None = None
) -> Iterator[LoggedProcess]:
    """`python ARGUMENTS`, with `settings` beside this process's environment; what it says goes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(settings or {})},
        )
    try:
        yield LoggedProcess(process, log)
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        finally:
            process.kill()
            process.wait(END_S)
