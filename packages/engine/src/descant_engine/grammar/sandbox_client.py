"""The engine's end of the sandbox: starts it when it is first needed, and again as soon as it has died."""

import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

from descant_engine.grammar.build import Build
from descant_engine.grammar.sandbox import (
    CPU_SECONDS,
    READY,
    WALL_SECONDS,
    Built,
    Refused,
    Setup,
    Taken,
    receive_outcome,
    send_frame,
)
from descant_engine.grammar.spec import GrammarRefused, GrammarSpec

STDERR = 2
START_SECONDS = 60.0
"""The libraries take some two seconds of a processor to load."""
EXIT_SECONDS = 2.0
DYING_SECONDS = 0.1
"""A process that was killed has closed its sockets a moment before it is seen to be gone."""
DEADLINE_SECONDS = WALL_SECONDS + 0.1
"""From a spec's way into the sandbox to the last build that is taken."""
TRIES = 2
"""Of what is no spec's fault."""


class SandboxFailed(RuntimeError):
    """The process that compiles grammars cannot be started or talked to."""


class GrammarTimedOut(GrammarRefused):
    """It could not be built in time; on a machine that is less busy, it perhaps could."""

    def __init__(self) -> None:
        super().__init__(f"it takes more than {CPU_SECONDS:g} second to compile; make it simpler")
        self.since = time.monotonic()


class SandboxLost(ConnectionError):
    """It ended with a spec that had no part in this."""


class SandboxProcess:
    """One start of the process. Used by one thread at a time, but for `is_ready`."""

    def __init__(self, setup: Setup) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "descant_engine.grammar.sandbox", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=STDERR,
            )
        send_frame(self._control, setup)
        self._has_said_so = False

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ends_within(self, seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return not self.is_alive

    @property
    def is_ready(self) -> bool:
        return self._has_said_so and self.is_alive

    def wait_until_ready(self) -> None:
        """Raises OSError: it ended, or takes too long."""
        if self._has_said_so:
            return
        self._control.settimeout(START_SECONDS)
        if self._control.recv(len(READY)) != READY:
            raise ConnectionError("the process that compiles grammars ended before it was ready")
        self._control.settimeout(None)
        self._has_said_so = True

    def hand_over(self, connection: socket.socket) -> None:
        """Raises OSError: it has ended."""
        socket.send_fds(self._control, [b"+"], [connection.fileno()])

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> None:
        self._control.close()
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Sandbox:
    """May be used from several threads."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._lock = threading.Lock()
        self._process: SandboxProcess | None = None
        self._is_closed = False

    @property
    def is_ready(self) -> bool:
        """Whether a spec would be compiled at once."""
        process = self._process
        return process is not None and process.is_ready

    def start(self) -> None:
        """Waits until it is ready; `build` does so by itself. Raises SandboxFailed."""
        for _ in range(TRIES):
            with self._lock:
                try:
                    self._running().wait_until_ready()
                except OSError:
                    self._stop()
                else:
                    return
        raise SandboxFailed("the process that compiles grammars ended as soon as it was started; the log says why")

    def build(self, spec: GrammarSpec) -> Build:
        """The best build that was made within the limits. Waits for it.

        Raises:
            GrammarRefused: it cannot be built, or not within the limits of time (GrammarTimedOut) and memory.
            SandboxFailed: nothing can be compiled at all.
        """
        for _ in range(TRIES):
            with suppress(OSError):
                return self._build(spec)
        raise SandboxFailed("the process that compiles grammars ends again and again; the log says why")

    def close(self) -> None:
        self._is_closed = True
        if (process := self._process) is not None:
            process.kill()  # whoever holds the lock, and waits for it to start, hears of it
        with self._lock:
            self._stop()

    def _build(self, spec: GrammarSpec) -> Build:
        """Raises OSError: the process has ended; the next one starts afresh."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = self._hand_over(theirs)
            try:
                return _take_builds(ours, spec, process)
            except SandboxLost:
                self._stop_if(process)
                raise
            finally:
                self._replace_dead()

    def _hand_over(self, connection: socket.socket) -> SandboxProcess:
        self.start()
        with self._lock:
            process = self._running()
            process.hand_over(connection)
            return process

    def _running(self) -> SandboxProcess:
        if self._is_closed:
            raise SandboxFailed("the engine is about to end")
        if self._process is None or not self._process.is_alive:
            self._stop()
            self._process = SandboxProcess(self._setup)
        return self._process

    def _replace_dead(self) -> None:
        """The next spec need not wait for a new process, if this one took the sandbox with it."""
        with self._lock:
            if not self._is_closed and self._process is not None and not self._process.is_alive:
                self._running()

    def _stop_if(self, process: SandboxProcess) -> None:
        """Unless another thread has put a new one in its place. It may be dying, and not be seen to be dead."""
        with self._lock:
            if self._process is process:
                self._stop()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


def _take_builds(connection: socket.socket, spec: GrammarSpec, process: SandboxProcess) -> Build:
    """Until the sandbox has made the last one, or the deadline.

    Raises:
        GrammarRefused: as `Sandbox.build` does.
        SandboxLost: the process ended before the spec was in it, or together with its child.
    """
    best: Build | None = None
    is_taken = False
    started = time.monotonic()
    with suppress(OSError):
        send_frame(connection, spec)
        while (seconds_left := started + DEADLINE_SECONDS - time.monotonic()) > 0:
            connection.settimeout(seconds_left)
            match receive_outcome(connection):
                case None:
                    break
                case Taken():
                    is_taken = True
                case Built(build):
                    best = build
                case Refused(reason):
                    raise GrammarRefused(reason)
    if best is not None:
        return best
    if time.monotonic() - started >= min(CPU_SECONDS, WALL_SECONDS):
        raise GrammarTimedOut
    if not is_taken or process.ends_within(DYING_SECONDS):
        raise SandboxLost
    raise GrammarRefused("it takes too much memory to compile; make it simpler")
