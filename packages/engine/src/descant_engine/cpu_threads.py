"""How torch's CPU threads wait for each other. OpenMP reads it once, when torch is imported."""

import os
from types import MappingProxyType
from typing import Final

SLEEP_WHILE_WAITING: Final = MappingProxyType({"OMP_WAIT_POLICY": "PASSIVE"})
"""By default they spin; when something else wants a core, they spin against the thread that they wait for: 1 token/s in
place of 12 on two busy cores."""


def sleep_while_waiting() -> None:
    """For this process, unless the user says otherwise. Too late once torch was imported."""
    for name, value in SLEEP_WHILE_WAITING.items():
        os.environ.setdefault(name, value)
