"""The gate: what is slower fails, what is noise or faster does not."""

import json
from pathlib import Path

import pytest

from descant_bench import regression
from descant_bench.regression import Verdict, compare_profiles, compare_throughput

WORKLOAD = {"phase": "decode", "batch": 64, "prompt_tokens": 128, "num_adapters": 0, "steps": 20}


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ((100.0, 99.0, 98.0), Verdict.SAME),
        ((96.0, 95.0, 94.0), Verdict.SLOWER),
        ((101.0, 95.0, 94.0), Verdict.NOISY),
        ((110.0, 109.0, 90.0), Verdict.FASTER),
    ],
)
def test_case(new: tuple[float, ...], verdict: Verdict) -> None:
    (finding,) = compare_throughput({"a": new}, {"a": (100.0, 101.0, 99.0)}, 0.03)
    assert finding.verdict is verdict
    assert finding.kept == 100.0


def test_cases_that_only_one_side_has() -> None:
    findings = compare_throughput({"new": (1.0,)}, {"old": (1.0,)}, 0.03)
    assert {finding.name: finding.verdict for finding in findings} == {"old": Verdict.MISSING, "new": Verdict.NEW}


def test_parts_of_a_profile() -> None:
    kept = {
        "workload": WORKLOAD,
        "step_us": 1000.0,
        "parts": {"attention": {"us": 200.0}, "norm": {"us": 50.0}, "sampling": {"us": 5.0}},
    }
    new = kept | {
        "step_us": 1020.0,
        "parts": {"attention": {"us": 230.0}, "norm": {"us": 40.0}, "sampling": {"us": 9.0}, "copies": {"us": 30.0}},
    }
    verdicts = {finding.name: finding.verdict for finding in compare_profiles(new, kept, 0.03, 0.1)}
    assert verdicts == {
        "step": Verdict.SAME,
        "attention": Verdict.SLOWER,
        "norm": Verdict.FASTER,
        "copies": Verdict.NEW,
    }
    with pytest.raises(ValueError, match="batch is 1, and was 64"):
        compare_profiles(new | {"workload": WORKLOAD | {"batch": 1}}, kept, 0.03, 0.1)


def test_exit_code(tmp_path: Path, run_main, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    new, kept = tmp_path / "new.json", tmp_path / "kept.json"
    kept.write_text(
        json.dumps(
            [
                {"workload": "decode-bs1", "unit": "output tok/s", "descant_runs": [200.0, 201.0, 199.0]},
                {"workload": "start to ready", "unit": "s", "descant_runs": [5.0]},
            ]
        )
    )
    new.write_text(json.dumps({"cases": {"decode-bs1": {"runs": [{"out_tok_s": 198.0, "total_tok_s": 1.0}]}}}))
    run_main(regression.main, new, kept)
    assert "same    decode-bs1: 200.0 -> 198.0 output tok/s (-1.0%)" in capsys.readouterr().out
    new.write_text(json.dumps({"cases": {"decode-bs1": {"runs": [{"out_tok_s": 150.0, "total_tok_s": 1.0}]}}}))
    with pytest.raises(SystemExit) as stopped:
        run_main(regression.main, new, kept)
    assert stopped.value.code == 1
    assert "SLOWER  decode-bs1" in capsys.readouterr().out
