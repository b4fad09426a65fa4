"""What the measurements of loading say is what the engine did."""

import json
import sys
from pathlib import Path

import pytest

from descant_bench import adapter_loads, cold_adapters
from descant_bench.random_adapters import modules_named, write_adapters
from descant_bench.recorded import random_requests, write_requests
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig

FAST = ("--device", "cpu", "--dtype", "float32", "--num-blocks", "64", "--max-num-seqs", "8", "--max-lora-rank", "4")
NUM_ADAPTERS, NUM_NAMED = 6, 4


@pytest.fixture
def adapters(tiny_config: Path, tmp_path: Path) -> Path:
    shape = resolve(EngineConfig(model=str(tiny_config))).shape
    folder = tmp_path / "adapters"
    write_adapters(folder, shape, NUM_ADAPTERS, lora_rank=4, modules=modules_named("attention"))
    return folder


def test_a_cold_run_reads_each_adapter_once_and_a_resident_one_none(
    adapters: Path,
    tiny_config: Path,
    tmp_path: Path,
    run_main,  # type: ignore[no-untyped-def]
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = tmp_path / "case.jsonl"
    write_requests(case, random_requests(8, 12, 4, vocab_size=300, adapters=[*range(NUM_NAMED)] * 2))
    run_main(
        cold_adapters.main,
        *("--model", tiny_config, "--adapters", adapters, "--requests", case, "--window", 100, *FAST),
    )
    lines = capsys.readouterr().out.splitlines()
    tables = [line.split() for line in lines if not line.startswith("{") and "steps" not in line]
    cold, resident = ((int(table[4]), int(table[5])) for table in tables)
    assert cold == (NUM_NAMED, NUM_NAMED)
    assert resident == (0, 0)
    ratios = json.loads(lines[-1])
    assert all(ratio > 0 for ratio in ratios.values())


def test_the_stages_of_a_load_make_up_most_of_it(
    adapters: Path,
    tiny_config: Path,
    run_main,  # type: ignore[no-untyped-def]
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: None)
    run_main(adapter_loads.main, "--model", tiny_config, "--adapters", adapters, "--threads", 2, *FAST)
    registered, loaded = map(json.loads, capsys.readouterr().out.splitlines())
    assert registered["register_ms"] > 0
    assert loaded["threads"] == 2
    assert {"read", "hash", "convert", "check", "lay out"} <= loaded["wall_ms_of"].keys()
    assert sum(loaded["cpu_ms_of"].values()) <= loaded["cpu_ms"] * 1.05 + 0.01
    assert loaded["step_ms_beside"]["max"] > 0
