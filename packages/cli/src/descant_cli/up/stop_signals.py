"""Ctrl-C and SIGTERM as a flag that waiting loops look at: nothing is cut between a start and its record."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from descant_cli.up.problem import StopRequested

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    def __init__(self) -> None:
        self._received = 0

    def raise_if_received(self) -> None:
        if self._received:
            raise StopRequested

    def is_impatient(self) -> bool:
        """Asked twice: wait for nothing more."""
        return self._received > 1

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received += 1


@contextmanager
def catch_stop_signals() -> Iterator[StopSignals]:
    signals = StopSignals()
    previous = {number: signal.signal(number, signals._receive) for number in _SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
