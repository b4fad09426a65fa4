"""`descant bench latency` and `startup`: the lines of vLLM's, and the same in JSON."""

import json
import re
from pathlib import Path

import pytest

from descant_bench import latency, startup, throughput

FAST = ("--device", "cpu", "--dtype", "float32", "--num-blocks", "64", "--max-num-seqs", "8", "--max-model-len", "64")


def test_latency(tiny_config: Path, tmp_path: Path, run_main, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "out.json"
    run_main(
        latency.main,
        *("--model", tiny_config, "--batch-size", 2, "--input-len", 6, "--output-len", 3, "--num-iters", 4),
        *("--num-iters-warmup", 1, "--output-json", output, *FAST),
    )
    report = json.loads(output.read_text())
    assert len(report["latencies"]) == 4
    assert report["avg_latency"] == pytest.approx(sum(report["latencies"]) / 4)
    printed = capsys.readouterr().out
    assert f"Avg latency: {report['avg_latency']} seconds" in printed
    assert f"99% percentile latency: {report['percentiles']['99']} seconds" in printed


@pytest.mark.parametrize("option", ["--batch-size", "--input-len", "--output-len", "--num-iters"])
def test_nothing_can_not_be_measured(
    option: str, tiny_config: Path, run_main, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit):
        run_main(latency.main, "--model", tiny_config, option, 0)
    assert f"argument {option}: must be at least 1; got 0" in capsys.readouterr().err


def test_throughput_of_random_prompts(tiny_config: Path, run_main, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    sizes = ("--num-prompts", 3, "--input-len", 6, "--output-len", 3, "--repeats", 1, "--warmups", 0)
    run_main(throughput.main, "--model", tiny_config, *sizes, *FAST)
    printed = capsys.readouterr().out
    assert re.search(r"^Throughput: [\d.]+ requests/s, [\d.]+ total tokens/s, [\d.]+ output tokens/s$", printed, re.M)
    assert '"workload": "random-6in-3out-3"' in printed


def test_startup(tiny_config: Path, tmp_path: Path, run_main, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "out.json"
    run_main(startup.main, "--model", tiny_config, "--num-iters", 1, "--output-json", output, *FAST)
    (start,) = json.loads(output.read_text())["starts"]
    assert 0 < start["ready_s"] < start["first_token_s"]
    assert "First startup time:" in capsys.readouterr().out


def test_startup_of_a_model_that_is_not_there(tmp_path: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit, match="the engine did not start"):
        run_main(startup.main, "--model", tmp_path / "nothing", "--num-iters", 1)
