"""Keeps the garbage collector off what a serving process loaded for good, and out of moments that it would spoil."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def settle_heap() -> None:
    """To be called once, when a process that serves one engine until it ends has loaded it.

    A full collection walks every object alive: with torch and transformers imported some hundred thousand, and each
    step's requests bring the next one nearer. What is alive now is not looked at again.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def imports_settled() -> Iterator[None]:
    """For imports that stay until the process ends: the collector looks at none of them, neither now nor later. torch
    brings 270,000 objects; walking them again and again takes a third of a second, and finds next to nothing."""
    with collector_paused():
        yield
    gc.freeze()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Nothing that is garbage already is taken away inside."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
