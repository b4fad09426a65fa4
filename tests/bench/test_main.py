"""`descant bench`: every measurement it names is there and takes its own options."""

import sys
from importlib.util import find_spec

import pytest
from click.testing import CliRunner

from descant_bench.main import MEASUREMENTS, bench


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurement_shows_its_own_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_spec(f"descant_bench.{name.replace('-', '_')}") is not None
    monkeypatch.setattr(sys, "argv", sys.argv)  # the command sets it for the measurement
    result = CliRunner().invoke(bench, [name, "--help"])
    assert result.exit_code == 0
    assert f"usage: descant bench {name}" in result.output


def test_unknown_measurement_is_refused_with_the_known_ones() -> None:
    result = CliRunner().invoke(bench, ["speed"])
    assert result.exit_code == 2
    assert all(name in result.output for name in MEASUREMENTS)
