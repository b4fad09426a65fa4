"""How long torch's CPU threads spin before they sleep. OpenMP reads it once, when torch is imported."""

import os
from collections.abc import Mapping

SPIN_COUNT = "20000"
"""Some 100 us. By default it is fifteen times that: when something else wants a core, threads spin against the thread
that they wait for (1 token/s in place of 12 on two busy cores). Without any spinning each parallel operation waits
50 us for a sleeper to wake: 27 tokens/s in place of 37 on two idle ones."""


def openmp_environment(given: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment `given`; nothing if the user decided on it there."""
    if "OMP_WAIT_POLICY" in given or "GOMP_SPINCOUNT" in given:
        return {}
    return {"GOMP_SPINCOUNT": SPIN_COUNT}


def spin_briefly() -> None:
    """For this process. Too late once torch was imported."""
    os.environ.update(openmp_environment(os.environ))
