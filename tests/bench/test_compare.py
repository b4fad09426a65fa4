"""Our figures beside the peer's: which runs count, which ratios come out, what the table marks."""

import json
from pathlib import Path

import pytest

from descant_bench import compare as compare_module
from descant_bench.compare import compare, markdown
from descant_bench.run_files import read_run

OURS = {
    "startup_s": 5.0,
    "environment": {"commit": "abc", "date": "2026-11-21", "command": "python -m ..."},
    "options": {"max_num_seqs": 256},
    "cases": {
        "decode-bs1": {"runs": [{"out_tok_s": x, "total_tok_s": 2 * x} for x in (230.0, 240.0, 90.0)]},
        "lora1-decode-bs1": {"runs": [{"out_tok_s": 180.0, "total_tok_s": 270.0}]},
        "prefill-8192": {"runs": [{"out_tok_s": 4.0, "total_tok_s": 38_000.0}]},
        "only-ours": {"runs": [{"out_tok_s": 1.0, "total_tok_s": 1.0}]},
    },
}
PEER = {
    "startup_s": 60.0,
    "decode-bs1#0": {"out_tok_s": 150.0, "total_tok_s": 300.0},
    "decode-bs1#1": {"out_tok_s": 200.0, "total_tok_s": 400.0},
    "lora1-decode-bs1#0": {"out_tok_s": 100.0, "total_tok_s": 150.0},
    "prefill-8192#0": {"out_tok_s": 5.0, "total_tok_s": 40_000.0},
}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "ours.json", tmp_path / "vllm.json"]
    for path, content in zip(paths, (OURS, PEER), strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_ratios(files: list[Path]) -> None:
    rows = {row.workload: row for row in compare([read_run(path) for path in reversed(files)])}
    decode = rows["decode-bs1"]
    assert (decode.descant, decode.vllm, decode.ratio) == (
        230.0,
        200.0,
        1.15,
    )  # our median; two runs of theirs: the best
    assert (decode.wanted, decode.commit, decode.engine_options) == (1.12, "abc", {"max_num_seqs": 256})
    assert rows["lora1-decode-bs1"].of_own_base == pytest.approx(180 / 230, abs=1e-3)
    assert (rows["prefill-8192"].ratio, rows["prefill-8192"].unit) == (0.95, "total tok/s")
    assert rows["only-ours"].ratio is None
    assert (rows["start to ready"].descant, rows["start to ready"].vllm, rows["start to ready"].ratio) == (
        5.0,
        60.0,
        12.0,
    )


def test_a_full_series_of_the_peer_has_a_median(files: list[Path]) -> None:
    files[1].write_text(json.dumps(PEER | {"decode-bs1#2": {"out_tok_s": 160.0, "total_tok_s": 1.0}}))
    assert compare([read_run(path) for path in files])[0].vllm == 160.0


def test_table_marks_what_falls_short(files: list[Path]) -> None:
    table = markdown(compare([read_run(path) for path in files]))
    assert "| decode-bs1 | 230 | 200 | 1.15 | 1.12 | 1.20 |  |  |" in table
    assert "| **0.78** | 0.88 |" in table


def test_writes_json_table_and_plot(files: list[Path], tmp_path: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("matplotlib")
    run_main(compare_module.main, *files, "--output", tmp_path / "h200-vllm")
    rows = json.loads((tmp_path / "h200-vllm.json").read_text())
    assert [row["workload"] for row in rows] == [*OURS["cases"], "start to ready"]  # type: ignore[misc]
    assert (tmp_path / "h200-vllm.md").read_text().startswith("| workload |")
    assert "<svg" in (tmp_path / "h200-vllm.svg").read_text()


def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "other.json"
    path.write_text('{"speed": 3}')
    with pytest.raises(SystemExit, match=r"other\.json is neither"):
        run_main(compare_module.main, path)
