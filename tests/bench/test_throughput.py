"""One process, several cases: the report has every run, its median, and what it was measured on."""

import json
from pathlib import Path

import pytest

from descant_bench import residents, throughput
from descant_bench.recorded import read_requests

from .engine_server import save_tiny_model

FAST = ("--load-format", "dummy", "--device", "cpu", "--dtype", "float32", "--num-blocks", "64", "--max-num-seqs", "8")

PREFIXES = (
    *("--dataset-name", "prefix_repetition", "--prefix-repetition-prefix-len", 4, "--prefix-repetition-suffix-len", 3),
    *("--prefix-repetition-num-prefixes", 2, "--prefix-repetition-output-len", 1),
)


@pytest.fixture
def cases(tiny_config: Path, tmp_path: Path, run_main) -> Path:  # type: ignore[no-untyped-def]
    sizes = ("--counts", 1, 3, "--num-requests", 5, "--prompt-tokens", 12, "--max-tokens", 4, "--lora-rank", 4)
    run_main(residents.main, "--model", tiny_config, "--output", tmp_path, "--files", 2, *sizes)
    return tmp_path


def test_cases_in_one_process(cases: Path, tiny_config: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    names = ["residents-1-uniform", "residents-3-zipf1"]
    paths = [cases / f"{name}.jsonl" for name in names]
    output = cases / "out.json"
    run_main(
        throughput.main,
        *("--model", tiny_config, "--requests", *paths, "--adapters", cases / "adapters", "--repeats", 3),
        *("--output", output, "--commit", "abc", "--roofline", "--copy-tb-s", 1, "--tflops", 1, *FAST),
    )
    report = json.loads(output.read_text())
    assert report["environment"]["commit"] == "abc"
    assert report["options"]["load_format"] == "dummy"
    assert list(report["cases"]) == names
    for case in report["cases"].values():
        assert len(case["runs"]) == 3
        assert len(case["warmup"]) == 1
        assert case["median"]["s"] == sorted(run["s"] for run in case["runs"])[1]
        median = case["median"]
        assert median["out_tok_s"] == pytest.approx(5 * 4 / median["s"], rel=0.05)
        assert median["total_tok_s"] == pytest.approx(median["out_tok_s"] * (12 + 4) / 4, rel=0.01)
        assert 0 < median["floor_s"] <= median["s"] or median["floor_s"] == 0.0


def test_latencies_come_by_group_and_from_arrival(tiny_config: Path, tmp_path: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    late = 0.3
    request = {"prompt_token_ids": [5, 6, 7], "max_tokens": 3, "adapter": None}
    case = tmp_path / "case.jsonl"
    lines = [request | {"group": "early"}, request | {"group": "late", "arrival_s": late}]
    case.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out.json"
    run_main(
        throughput.main,
        *("--model", tiny_config, "--requests", case, "--repeats", 1, "--output", output, *FAST),
    )
    run = json.loads(output.read_text())["cases"]["case"]["median"]
    assert run["s"] >= late
    assert set(run["groups"]) == {"early", "late"}
    assert 0 < run["groups"]["late"]["ttft_p99_ms"] < 1e3 * late


@pytest.mark.parametrize(
    ("options", "name", "num_tokens"),
    [
        (("--input-len", 5, "--output-len", 2), "random-5in-2out-3", 7),
        (PREFIXES, "prefix_repetition-3", 8),
    ],
)
def test_prompts_may_be_of_a_data_set(  # type: ignore[no-untyped-def]
    options: tuple[object, ...], name: str, num_tokens: int, tiny_config: Path, tmp_path: Path, run_main
) -> None:
    output = tmp_path / "out.json"
    run_main(
        throughput.main,
        *("--model", tiny_config, "--num-prompts", 3, "--repeats", 1, "--output-json", output, *options, *FAST),
    )
    case = json.loads(output.read_text())["cases"][name]["median"]
    assert case["total_tok_s"] / case["req_s"] == pytest.approx(num_tokens, rel=0.05)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """With a tokenizer, of one token a byte."""
    return save_tiny_model(tmp_path / "model")


def test_conversations_are_read_by_the_models_tokenizer(model_path: Path, tmp_path: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    path, output = tmp_path / "conversations.json", tmp_path / "out.json"
    path.write_text(json.dumps([{"conversations": [{"value": "12345678"}, {"value": "123456"}]}]))
    run_main(
        throughput.main,
        *("--model", model_path, "--dataset-name", "sharegpt", "--dataset-path", path, "--num-prompts", 4),
        *("--repeats", 1, "--output-json", output, *FAST),
    )
    case = json.loads(output.read_text())["cases"]["sharegpt-4"]["median"]
    assert case["total_tok_s"] / case["req_s"] == pytest.approx(8 + 6, rel=0.05)


def test_a_data_set_without_its_file_is_refused(model_path: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit, match="--dataset-path"):
        run_main(throughput.main, "--model", model_path, "--dataset-name", "sharegpt", *FAST)


def test_adapters_without_a_folder_are_refused(cases: Path, tiny_config: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit, match="--adapters FOLDER"):
        run_main(throughput.main, "--model", tiny_config, "--requests", cases / "residents-1-uniform.jsonl", *FAST)


def test_a_line_that_is_no_request_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt_token_ids": [1], "max_tokens": 2}\n{"max_tokens": 2}\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl, line 2.*prompt_token_ids"):
        read_requests(path)
