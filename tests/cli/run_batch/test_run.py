"""`descant run-batch` with a real engine: every line answered once, whatever interrupts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.bench.engine_server import save_strong_adapter, save_tiny_model

from descant_cli.main import main


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("batch")
    model = save_tiny_model(folder / "model")
    adapter = save_strong_adapter(folder / "red", 1)
    served = ["--served-model-name", "tiny", "--lora-modules", f"red={adapter}"]
    return ["--model", str(model), "--load-format", "dummy", "--device", "cpu", *served]


def request(name: str, model: str = "tiny", **fields: object) -> dict[str, object]:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 4}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body | fields}


def write(path: Path, lines: list[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answers(path: Path) -> dict[str | None, dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["custom_id"] or line["id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def run(options: list[str], source: Path, target: Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["run-batch", "-i", str(source), "-o", str(target), *options])
    return result.exit_code, result.output


def test_every_line_has_its_answer_and_a_second_run_goes_on(options: list[str], tmp_path: Path) -> None:
    completion = {
        "custom_id": "completion",
        "url": "/v1/completions",
        "body": {"model": "tiny", "prompt": "a", "max_tokens": 3},
    }
    lines = [
        request("base"),
        request("adapter", "red"),
        completion,
        request("hot", temperature=9),
        request("nobody", "nobody"),
        {"custom_id": "lost", "url": "/v1/nowhere", "body": {}},
        request("base"),
    ]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    code, printed = run(options, source, target)
    assert code == 0, printed
    assert "3 answered, 4 failed" in printed
    found = answers(target)
    texts = [found[name]["response"]["body"]["choices"][0]["message"]["content"] for name in ("base", "adapter")]
    assert texts[0] != texts[1]
    assert found["completion"]["response"]["body"]["usage"]["completion_tokens"] == 3
    assert found["completion"]["response"]["request_id"] == found["completion"]["response"]["body"]["id"]
    hot = found["hot"]["response"]
    assert (hot["status_code"], hot["body"]["error"]["param"]) == (400, "temperature")
    assert found["nobody"]["response"]["status_code"] == 404
    assert found["lost"]["response"]["status_code"] == 404
    assert found[None]["error"]["code"] == "duplicate_custom_id"

    kept = target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(kept[:-2]) + kept[-2][:20])
    code, printed = run(options, source, target)
    assert code == 0, printed
    assert "5 were there already" in printed
    assert answers(target).keys() == found.keys()

    code, printed = run([*options, "--device", "cuda"], source, target)  # nothing is left: no engine is started
    assert code == 0, printed
    assert "0 answered, 0 failed, 7 were there already" in printed


@pytest.mark.slow
def test_killed_in_the_middle_every_line_is_answered_once(options: list[str], tmp_path: Path) -> None:
    names = [f"r{number}" for number in range(60)]
    source = write(tmp_path / "in.jsonl", [request(name, max_tokens=40, ignore_eos=True) for name in names])
    target = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "descant_cli", "run-batch", "-i", str(source), "-o", str(target), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--max-num-seqs", "4"], stderr=subprocess.PIPE, env=environment)
    deadline = time.monotonic() + 90
    while not (target.exists() and target.stat().st_size > 2000):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    num_before = target.read_bytes().count(b"\n")
    assert 0 < num_before < len(names)
    code, printed = run(options, source, target)
    assert code == 0, printed
    assert f"{num_before} were there already" in printed
    found = answers(target)
    assert found.keys() == set(names)
    assert all(line["response"]["body"]["usage"]["completion_tokens"] == 40 for line in found.values())


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [request("a")])
    code, printed = run(["--model", str(tmp_path / "nothing"), "--device", "cpu"], source, tmp_path / "out.jsonl")
    assert code == 1
    assert "cannot serve" in printed
    assert (tmp_path / "out.jsonl").read_bytes() == b""
