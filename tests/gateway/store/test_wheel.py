"""An installed gateway finds its migrations without a source checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def unpacked_wheel(tmp_path: Path) -> Path:
    pytest.importorskip("hatchling")
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    subprocess.run(build, cwd=REPOSITORY / "services/gateway", check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    folder = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_wheel_migrates_a_database(unpacked_wheel: Path, empty_postgres_url: str) -> None:
    """The unpacked wheel comes before the checkout on the path, and says so."""
    program = (
        "from descant_gateway.store import migrate; print(migrate.scripts_folder()); raise SystemExit(migrate.main())"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked_wheel), "DESCANT_DATABASE_URL": empty_postgres_url}
    ran = subprocess.run(
        (sys.executable, "-c", program), env=environment, cwd=unpacked_wheel, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        str(unpacked_wheel / "descant_gateway/_migrations"),
        "The database is up to date.",
    ]
