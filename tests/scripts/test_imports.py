"""Every measurement that is run by hand still begins: what it imports is there."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
RUN_FROM_TESTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "tests").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
CODE = """
import importlib, sys, traceback

faulty = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException:
        traceback.print_exc()
        faulty.append(name)
print("cannot be imported:", *faulty)
sys.exit(bool(faulty))
"""


@pytest.mark.parametrize("modules", [SCRIPTS, RUN_FROM_TESTS], ids=["scripts", "tests"])
def test_what_is_run_by_hand_can_be_imported(modules: list[str]) -> None:
    assert len(modules) > 5
    command = [sys.executable, "-P", "-c", f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'scripts')]}\n{CODE}"]
    done = subprocess.run([*command, *modules], capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
