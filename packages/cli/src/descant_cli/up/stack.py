"""Starts the parts, waits for them, watches them, stops them: newest first."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from descant_cli.up.data_folder import DataFolder
from descant_cli.up.problem import UpProblem
from descant_cli.up.process import Part, PartProcess
from descant_cli.up.stop_signals import StopSignals

POLL_S: Final = 0.05


class Stack:
    """Every part started inside `with` has ended when it is left, whichever way."""

    def __init__(self, folder: DataFolder, signals: StopSignals) -> None:
        self._folder = folder
        self._signals = signals
        self._processes: list[PartProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.ask_to_stop()
            process.wait_stopped(self._signals.is_impatient)

    def start(self, part: Part) -> None:
        try:
            process = PartProcess(part, self._folder.path, self._log(part.name))
        except OSError as error:
            raise UpProblem(f"{part.name} cannot be started: {error}") from error
        self._processes.append(process)

    def wait_ready(self, part: Part, timeout_s: float) -> None:
        """Raises UpProblem if it, or any other part, ends first, or if it takes longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not part.is_ready():
            self._check()
            if time.monotonic() > deadline:
                raise UpProblem(f"{part.name} is not ready after {timeout_s:.0f} s. See {self._log(part.name)}")
            time.sleep(POLL_S)

    def run_once(self, name: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """A part that does one thing and ends."""
        part = Part(name=name, argv=tuple(argv), environment=environment, is_ready=lambda: True)
        process = PartProcess(part, self._folder.path, self._log(name))
        try:
            while process.exit_code() is None:
                self._check()
                time.sleep(POLL_S)
        finally:
            process.ask_to_stop()
            process.wait_stopped(self._signals.is_impatient)
        if process.exit_code() != 0:
            raise _ended(process)

    def watch(self) -> None:
        """Returns never: raises StopRequested when the user asks to stop, UpProblem when a part ends by itself."""
        while True:
            self._check()
            time.sleep(4 * POLL_S)

    def _check(self) -> None:
        self._signals.raise_if_received()
        for process in self._processes:
            if process.exit_code() is not None:
                raise _ended(process)

    def _log(self, name: str) -> Path:
        return self._folder.logs / f"{name}.log"


def _ended(process: PartProcess) -> UpProblem:
    code = process.exit_code()
    how = f"exit code {code}" if code is not None and code >= 0 else f"signal {-(code or 0)}"
    message = f"The {process.part.name} ended by itself ({how}), so everything was stopped. Its log: {process.log}"
    return UpProblem(message, log_tail=process.log_tail())
