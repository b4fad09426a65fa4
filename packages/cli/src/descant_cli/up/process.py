"""One part of the stack as a child process: its own process group, its own log, dead when we are."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LOG_TAIL_LINES: Final = 15
PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What to run, and how to know that it runs."""

    name: str
    """As the user reads it, and the name of the log."""
    argv: tuple[str, ...]
    is_ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to our own."""
    user: str | None = None
    """Runs as this system user; None is ours."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace_s: float = 15.0
    """After that it is killed."""


class PartProcess:
    """A started part."""

    def __init__(self, part: Part, folder: Path, log: Path) -> None:
        self.part = part
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                part.argv,
                env={**os.environ, **part.environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=part.user,
                group=part.user,
                process_group=0,  # Ctrl-C in the terminal reaches us alone; we stop the parts in order
                preexec_fn=_die_with_parent(part.stop_signal),
            )

    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.poll()

    def log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def ask_to_stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(self.part.stop_signal)

    def wait_stopped(self, is_impatient: Callable[[], bool]) -> None:
        """Until it has ended, its time is over, or the user will wait no longer; then nothing of its group is left."""
        deadline = time.monotonic() + self.part.stop_grace_s
        while self._process.poll() is None and time.monotonic() < deadline and not is_impatient():
            time.sleep(0.02)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _die_with_parent(stop_signal: signal.Signals) -> Callable[[], None] | None:
    """For the child, before exec: the kernel sends it `stop_signal` when we die, however we die (Linux only)."""
    if _LIBC is None:
        return None
    parent = os.getpid()

    def ask_kernel() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, stop_signal, 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and here
            os._exit(1)

    return ask_kernel
