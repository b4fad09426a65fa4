"""torch's CPU threads spin briefly while they wait, in a script's own process too."""

import os
import subprocess
import sys

import pytest

from descant_engine.cpu_threads import SPIN_COUNT

PROGRAM = """
import os, sys
import descant_engine
assert "torch" not in sys.modules
descant_engine.LLM
assert "torch" in sys.modules
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "used"),
    [({}, SPIN_COUNT), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_a_script_gets_a_short_spin_unless_it_says_otherwise(given: dict[str, str], used: str) -> None:
    openmp = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in openmp} | given
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == used
