"""The curve over the number of adapters, from a report's cases."""

import json
from pathlib import Path

import pytest

from descant_bench import curve

REPORT = {
    "cases": {
        f"residents-{count}-{popularity}": {"median": {"out_tok_s": speed, "of_floor": 0.5}}
        for popularity, count, speed in (
            ("uniform", 1000, 4000.0),
            ("uniform", 64, 8000.0),
            ("zipf1", 8, 9000.0),
        )
    }
    | {"decode-bs1": {"median": {"out_tok_s": 1.0}}}
}


def test_points_are_relative_to_64_adapters_of_the_same_popularity() -> None:
    points = curve.points_of(REPORT)
    assert [(point.popularity, point.num_adapters, point.of_reference) for point in points] == [
        ("uniform", 64, 1.0),
        ("uniform", 1000, 0.5),
        ("zipf1", 8, None),
    ]


def test_writes_table_and_plot(tmp_path: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("matplotlib")
    report = tmp_path / "report.json"
    report.write_text(json.dumps(REPORT))
    run_main(curve.main, report, "--output", tmp_path / "curve")
    assert "| 1000 | uniform | 4,000 | 0.50 | 0.50 |" in (tmp_path / "curve.md").read_text()
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    assert len(json.loads((tmp_path / "curve.json").read_text())) == 3


def test_a_report_without_the_cases_is_refused(tmp_path: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    report = tmp_path / "report.json"
    report.write_text('{"cases": {}}')
    with pytest.raises(SystemExit, match="no case residents-COUNT-POPULARITY"):
        run_main(curve.main, report)
