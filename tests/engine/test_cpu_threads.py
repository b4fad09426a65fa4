"""torch's CPU threads sleep while they wait, in a script's own process too."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
import descant_engine
assert "torch" not in sys.modules
descant_engine.LLM
assert "torch" in sys.modules
print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_a_script_gets_sleeping_threads_unless_it_says_otherwise(given: str | None, used: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == used
