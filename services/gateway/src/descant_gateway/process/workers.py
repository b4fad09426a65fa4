"""Several gateway processes on one port, and the one process above them that starts, restarts and ends them.

Each listens on a socket of its own (SO_REUSEPORT), so the kernel deals connections evenly. From one socket that all
inherit, the first to wake accepts whatever waits: 37 of 40 connections that came together, measured; and clients keep
theirs for long. Forking shares what was imported: a further worker costs what it allocates itself.
"""

import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType
from typing import Final

import structlog
from msgspec import Struct

from descant_gateway.config import GatewayConfig

CANNOT_START: Final = 78
"""The exit status of a worker that can't serve with this configuration (sysexits' EX_CONFIG)."""
_RESTART_DELAY_S: Final = 1.0
_START_S: Final = 60.0
"""A worker that has lived so long had started."""
_GRACE_BEYOND_S: Final = 40.0
"""After the streams' grace: flushing the ledger takes up to 30 s."""

_log = structlog.get_logger("descant_gateway.process.workers")


class WorkerPlace(Struct, frozen=True):
    """Which of the workers this process is."""

    index: int = 0
    count: int = 1
    folder: Path | None = None
    """Where they meet: a unix socket each. None for a process without others."""

    @property
    def is_first(self) -> bool:
        """The one that does what only one of them should."""
        return self.index == 0


SOLE: Final = WorkerPlace()
RunWorker = Callable[[GatewayConfig, socket.socket, WorkerPlace, int], None]


class WorkersFailed(Exception):
    """A worker could not start; it said why."""


def _counting_workers(config: GatewayConfig) -> GatewayConfig:
    process = config.process
    return replace(config, process=replace(process, num_processes=process.num_processes * process.workers))


class Workers:
    """Owns the processes. `run` is given what one of them does: config, listener, place, and a pipe that is closed
    when this process is gone."""

    def __init__(self, config: GatewayConfig, listener: socket.socket, run: RunWorker) -> None:
        self._listener = listener
        self._run_worker = run
        self._count = config.process.workers
        self._config = _counting_workers(config)
        self._processes: dict[int, tuple[ForkProcess, float]] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="descant-workers-"))
        self._alive_end, self._parent_end = os.pipe()
        self._signals, self._signal_end = socket.socketpair()
        self._is_stopping = False
        self._has_started = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT, and then until all workers have drained. Raises WorkersFailed."""
        self._listen_to_signals()
        try:
            for index in range(self._count):
                self._start(index)
            while not self._is_stopping:
                self._wait_and_restart()
        finally:
            self._stop()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _listen_to_signals(self) -> None:
        self._signal_end.setblocking(False)

        def stop(_: int, __: FrameType | None) -> None:
            self._is_stopping = True
            with suppress(OSError):
                self._signal_end.send(b"!")

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    def _start(self, index: int) -> None:
        place = WorkerPlace(index, self._count, self._folder)
        process = multiprocessing.get_context("fork").Process(target=self._work, args=(place,), name=f"worker-{index}")
        process.start()
        self._processes[index] = (process, time.monotonic())
        _log.info("worker started", worker=index, pid=process.pid)

    def _work(self, place: WorkerPlace) -> None:
        """In the child."""
        os.setpgrp()  # a terminal's Ctrl-C reaches the parent alone, which tells each worker once
        os.close(self._parent_end)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        self._run_worker(self._config, self._listener, place, self._alive_end)
        sys.stdout.flush()

    def _wait_and_restart(self) -> None:
        wait([*(process.sentinel for process, _ in self._processes.values()), self._signals], timeout=_RESTART_DELAY_S)
        if self._is_stopping:
            return
        for index, (process, started_at) in list(self._processes.items()):
            lived_s = time.monotonic() - started_at
            if process.exitcode is None:
                self._has_started = self._has_started or lived_s > _START_S
                continue
            if process.exitcode == CANNOT_START and not self._has_started:
                raise WorkersFailed("a worker could not start; its own message is above")
            _log.error("worker ended; starting it again", worker=index, pid=process.pid, status=process.exitcode)
            time.sleep(max(0.0, _RESTART_DELAY_S - lived_s))
            self._start(index)

    def _stop(self) -> None:
        """Each drains by itself; who has not ended in time is killed."""
        for process, _ in self._processes.values():
            process.terminate()
        give_up_at = (
            time.monotonic()
            + self._config.process.drain_delay_s
            + self._config.process.shutdown_grace_s
            + _GRACE_BEYOND_S
        )
        for process, _ in self._processes.values():
            process.join(max(0.0, give_up_at - time.monotonic()))
            if process.exitcode is None:
                _log.error("worker did not end in time; killed", pid=process.pid)
                process.kill()
                process.join()
