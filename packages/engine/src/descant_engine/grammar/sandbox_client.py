"""The engine's end of the sandbox: starts it when it is first needed, and again should it die."""

import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

from descant_engine.grammar.build import Build
from descant_engine.grammar.sandbox import CPU_SECONDS, Built, Refused, Setup, receive_outcome, send_frame
from descant_engine.grammar.spec import GrammarRefused, GrammarSpec

STDERR = 2
EXIT_SECONDS = 2.0


class SandboxFailed(RuntimeError):
    """The process that compiles grammars cannot be started or talked to."""


class Sandbox:
    """May be used from several threads."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def build(self, spec: GrammarSpec) -> Build:
        """The best build that was made within the limits. Waits for it.

        Raises:
            GrammarRefused: it cannot be built, or not within the limits of time and memory.
            SandboxFailed: nothing can be compiled at all.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._hand_over(theirs)
            return self._take_builds(ours, spec)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _take_builds(self, connection: socket.socket, spec: GrammarSpec) -> Build:
        best: Build | None = None
        started = time.monotonic()
        with suppress(ConnectionError):
            send_frame(connection, spec)
            while (outcome := receive_outcome(connection)) is not None:
                match outcome:
                    case Built(build):
                        best = build
                    case Refused(reason):
                        raise GrammarRefused(reason)
        if best is None:
            raise GrammarRefused(_cause_of_death(time.monotonic() - started))
        return best

    def _hand_over(self, connection: socket.socket) -> None:
        for _ in range(2):
            with self._lock:
                try:
                    socket.send_fds(self._running(), [b"+"], [connection.fileno()])
                except OSError:
                    self._stop()
                else:
                    return
        raise SandboxFailed("the process that compiles grammars ended as soon as it was started; the log says why")

    def _running(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._stop()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "descant_engine.grammar.sandbox", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=STDERR,
            )
        send_frame(self._control, self._setup)
        return self._control

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _cause_of_death(seconds: float) -> str:
    if seconds >= CPU_SECONDS:
        return f"it takes more than {CPU_SECONDS} seconds to compile; make it simpler"
    return "it takes too much memory to compile; make it simpler"
