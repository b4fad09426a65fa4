"""The online benchmark against a real engine server, and its plan of the load."""

import json
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest

from descant_bench import serve
from descant_bench.online.arrivals import arrival_times, choose_names
from descant_bench.online.client import RequestRecord
from descant_bench.online.load import LoadResult
from descant_bench.online.metrics import measure, parse_promises
from descant_bench.online.prompts import PrefixRepetition, RandomPrompts, ShareGpt, TokenSource
from descant_engine.text.tokenizer import Tokenizer

from .engine_server import engine_server, save_strong_adapter, save_tiny_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def url(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    adapters = tmp_path_factory.mktemp("adapters")
    modules = [f"{name}={save_strong_adapter(adapters / name, seed)}" for seed, name in enumerate(("red", "blue"))]
    with engine_server(model_path, "--lora-modules", *modules) as address:
        yield address


COMMON = ("--model", "tiny", "--num-prompts", 6, "--disable-tqdm", "--ignore-eos", "--vocab-size", 256)
RANDOM = ("--random-input-len", 20, "--random-output-len", 5)


FIGURES = ("Mean TTFT (ms):", "Median TPOT (ms):", "P99 ITL (ms):", "P50 E2EL (ms):", "Request goodput (req/s):")


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "vllm"])
def test_random_prompts_on_either_endpoint(
    backend: str,
    url: str,
    model_path: Path,
    tmp_path: Path,
    run_main,  # type: ignore[no-untyped-def]
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_main(
        serve.main,
        *("--base-url", url, "--backend", backend, "--tokenizer", model_path, *COMMON, *RANDOM),
        *("--save-result", "--save-detailed", "--result-dir", tmp_path, "--result-filename", "out.json"),
        *("--metric-percentiles", "50,99", "--percentile-metrics", "ttft,tpot,itl,e2el", "--goodput", "ttft:60000"),
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert "Successful requests:                     6         " in lines
    assert "Total generated tokens:                  30        " in lines
    shown = {
        label: float(line.removeprefix(label))
        for line in lines
        for label in (
            "Mean TTFT (ms):",
            "Median TPOT (ms):",
            "P99 ITL (ms):",
            "P50 E2EL (ms):",
            "Request goodput (req/s):",
        )
        if line.startswith(label)
    }
    assert shown["Mean TTFT (ms):"] > 0
    assert shown["P50 E2EL (ms):"] > 0
    assert shown["Request goodput (req/s):"] > 0
    saved = json.loads((tmp_path / "out.json").read_text())
    assert (saved["completed"], saved["failed"], saved["total_output_tokens"]) == (6, 0, 30)
    assert saved["output_lens"] == [5] * 6
    assert saved["request_goodput"] == pytest.approx(saved["request_throughput"])
    assert saved["total_input_tokens"] >= 6 * 20
    assert saved["p99_ttft_ms"] >= saved["median_ttft_ms"] > 0
    # On a busy machine several tokens come at once, and then these are small.
    per_token = statistics.median(sum(gaps) / 4 for gaps in saved["itls"])
    assert shown["Median TPOT (ms):"] == pytest.approx(per_token * 1000, abs=0.1, rel=0.05)
    assert (
        0 <= shown["P99 ITL (ms):"] <= max((gap for gaps in saved["itls"] for gap in gaps), default=0.0) * 1000 + 0.01
    )


def test_token_ids_have_exactly_the_length_and_adapters_are_named(
    url: str,
    tmp_path: Path,
    run_main,  # type: ignore[no-untyped-def]
) -> None:
    pytest.importorskip("matplotlib")
    run_main(
        serve.main,
        *("--base-url", url, *COMMON, *RANDOM, "--lora-modules", "red", "blue", "--lora-popularity", "zipf"),
        *("--max-concurrency", 2, "--request-rate", 200, "--num-warmups", 1, "--plot", tmp_path / "plot.svg"),
        *("--save-result", "--save-detailed", "--result-dir", tmp_path, "--result-filename", "out.json"),
    )
    saved = json.loads((tmp_path / "out.json").read_text())
    assert saved["input_lens"] == [20] * 6
    assert set(saved["models"]) <= {"red", "blue"}
    assert saved["max_concurrent_requests"] <= 2
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_failures_are_counted_and_shown(url: str, run_main, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit, match="no request succeeded"):
        run_main(serve.main, "--base-url", url, *COMMON, *RANDOM, "--model", "nobody")
    captured = capsys.readouterr()
    assert "Failed requests:                         6" in captured.out
    assert "failed: 404" in captured.err


def test_a_server_that_is_not_there(run_main, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit, match="no request succeeded"):
        run_main(serve.main, "--base-url", "http://127.0.0.1:9", *COMMON, *RANDOM)
    assert "ClientConnectorError" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--num-prompts", "0"),
        ("--request-rate", "0"),
        ("--request-rate", "fast"),
        ("--burstiness", "-1"),
        ("--max-concurrency", "0"),
        ("--num-warmups", "-1"),
        ("--extra-body", "{bad"),
        ("--extra-body", "[]"),
        ("--metric-percentiles", "50,150"),
        ("--prefix-repetition-num-prefixes", "0"),
        ("--goodput", "ttft:soon"),
    ],
)
def test_a_value_that_can_not_be_is_refused_by_its_option(
    options: tuple[str, str],
    url: str,
    run_main,
    capsys: pytest.CaptureFixture[str],  # type: ignore[no-untyped-def]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_main(serve.main, "--base-url", url, *COMMON, *RANDOM, *options)
    told = capsys.readouterr().err + str(ended.value.code)
    (line,) = (line for line in told.splitlines() if "error: " in line or line.startswith("--"))
    assert options[0] in line


def test_sharegpt_file(url: str, tmp_path: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "conversations.json"
    turns = [{"from": "human", "value": "What is a descant?"}, {"from": "gpt", "value": "A melody above another one."}]
    path.write_text(json.dumps([{"id": "1", "conversations": turns}, {"id": "2", "conversations": turns[:1]}]))
    run_main(
        serve.main,
        *("--base-url", url, "--backend", "openai-chat", *COMMON, "--dataset-name", "sharegpt", "--dataset-path", path),
        *("--save-result", "--save-detailed", "--result-dir", tmp_path, "--result-filename", "out.json"),
    )
    saved = json.loads((tmp_path / "out.json").read_text())
    assert saved["output_lens"] == [7] * 6  # 27 characters, four a token


def test_sharegpt_lengths_by_the_tokenizer(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([{"conversations": [{"value": "12345678"}, {"value": "123456"}]}]))
    (request,) = ShareGpt(path=path).requests(1, Tokenizer.load(str(model_path)), random.Random(0))
    assert (request.num_prompt_tokens, request.max_tokens) == (8, 6)
    path.write_text('{"not": "a list"}')
    with pytest.raises(ValueError, match="not in ShareGPT's format"):
        list(ShareGpt(path=path).requests(1, None, random.Random(0)))


def test_prefixes_repeat() -> None:
    rng = random.Random(0)
    source = TokenSource(rng, None, needs_text=False)
    dataset = PrefixRepetition(prefix_len=8, suffix_len=4, num_prefixes=3, output_len=2)
    requests = list(dataset.requests(12, source, rng))
    assert Counter(Counter(request.prompt[:8] for request in requests).values()) == {4: 3}
    assert len({request.prompt for request in requests}) == 12
    assert {request.num_prompt_tokens for request in requests} == {12}


def test_random_lengths_stay_in_their_range() -> None:
    rng = random.Random(0)
    dataset = RandomPrompts(input_len=100, output_len=10, range_ratio=0.5, prefix_len=7)
    requests = list(dataset.requests(50, TokenSource(rng, None, needs_text=False), rng))
    lengths = {request.num_prompt_tokens - 7 for request in requests}
    assert min(lengths) >= 50
    assert max(lengths) <= 150
    assert len(lengths) > 10
    assert len({request.prompt[:7] for request in requests}) == 1


@pytest.mark.parametrize(("burstiness", "low", "high"), [(0.2, 3.0, 8.0), (1.0, 0.7, 1.3), (10.0, 0.05, 0.2)])
def test_gaps_have_the_rate_and_the_burstiness(burstiness: float, low: float, high: float) -> None:
    times = list(arrival_times(4000, 50.0, burstiness, random.Random(1)))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = fmean(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.15)
    assert low < fmean((gap - mean) ** 2 for gap in gaps) / mean**2 < high  # gamma: 1 / burstiness
    assert set(arrival_times(3, float("inf"), 1.0, random.Random(0))) == {0.0}


def test_popularity_of_names() -> None:
    names = [f"a{number}" for number in range(4)]
    uniform = Counter(choose_names(names, 4000, 0.0, random.Random(0)))
    assert max(uniform.values()) < 1.2 * min(uniform.values())
    zipf = Counter(choose_names(names, 4000, 1.0, random.Random(0)))
    assert zipf["a0"] / zipf["a3"] == pytest.approx(4, rel=0.2)


def test_figures_of_records() -> None:
    good = RequestRecord("m", 0.0, 10, num_output_tokens=5, ttft=0.1, chunk_gaps=[0.1] * 4, latency=0.5)
    slow = RequestRecord("m", 0.2, 10, num_output_tokens=5, ttft=0.9, chunk_gaps=[0.1] * 4, latency=1.3)
    failed = RequestRecord("m", 5.0, 10, error="500")
    metrics = measure(LoadResult(2.0, (good, slow, failed)), [99.0], parse_promises(["ttft:200", "tpot:150"]))
    assert (metrics.completed, metrics.failed, metrics.total_output, metrics.total_input) == (2, 1, 10, 20)
    assert (metrics.goodput, metrics.output_throughput, metrics.peak_concurrency) == (0.5, 5.0, 2)
    assert metrics.latencies["ttft"].mean == pytest.approx(500)
    assert metrics.latencies["tpot"].median == pytest.approx(100)
    assert metrics.latencies["ttft"].percentiles[99.0] == pytest.approx(892)
    with pytest.raises(ValueError, match="must be ttft:MS"):
        parse_promises(["itl:3"])
