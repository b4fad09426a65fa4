"""The command line, up to the configuration it makes."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from descant_engine.config import EngineConfig
from descant_server import main
from descant_server.config import AdapterSource, ServerConfig


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[ServerConfig]:
    """What `serve` was about to run."""
    seen: list[ServerConfig] = []
    monkeypatch.setattr(main, "run", seen.append)
    return seen


def serve(*arguments: str) -> str:
    result = CliRunner().invoke(main.serve, arguments)
    return result.output if result.exit_code else ""


def test_defaults_are_the_engines(configs: list[ServerConfig]) -> None:
    assert serve("some/model") == ""
    assert configs == [ServerConfig(engine=EngineConfig(model="some/model"))]
    assert configs[0].base_names == ("some/model",)


def test_every_flag_arrives(configs: list[ServerConfig]) -> None:
    flags = (
        "m --host 0.0.0.0 --port 9 --served-model-name a --served-model-name b --dtype float32 --max-model-len 99"
        " --gpu-memory-utilization 0.5 --max-num-seqs 3 --max-num-batched-tokens 64 --no-enable-prefix-caching"
        " --enable-lora --max-lora-rank 8 --load-format dummy --seed 4 --api-key k --device cpu --tokenizer t"
        " --block-size 32 --max-queued-requests 7 --drain-timeout 2.5 --max-body-bytes 1000"
    )
    assert serve(*flags.split()) == ""
    engine = EngineConfig(
        model="m",
        tokenizer="t",
        dtype="float32",
        device="cpu",
        load_format="dummy",
        seed=4,
        max_model_len=99,
        block_size=32,
        gpu_memory_utilization=0.5,
        max_num_seqs=3,
        max_num_batched_tokens=64,
        max_num_queued_requests=7,
        enable_prefix_caching=False,
        enable_lora=True,
        max_lora_rank=8,
    )
    expected = ServerConfig(
        engine=engine,
        host="0.0.0.0",
        port=9,
        served_model_names=("a", "b"),
        api_keys=("k",),
        max_body_bytes=1000,
        drain_timeout_s=2.5,
    )
    assert configs == [expected]


@pytest.mark.parametrize(
    "arguments",
    ["--lora-modules a=x b=y=z --port 9 m", "m --lora-modules a=x --lora-modules b=y=z", "m --lora-modules a=x b=y=z"],
)
def test_adapters_as_vllm_users_write_them(configs: list[ServerConfig], arguments: str) -> None:
    assert serve(*arguments.split()) == ""
    assert configs[0].adapters == (AdapterSource("a", "x"), AdapterSource("b", "y=z"))
    assert configs[0].engine.enable_lora


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("", "MODEL"),
        ("m --lora-modules nonsense", "NAME=PATH"),
        ("m --lora-modules a=x a=y", "'a' is given twice"),
        ("m --served-model-name a --lora-modules a=x", "'a' is given twice"),
        ("m --dtype int3", "int3"),
        ("m --port 70000", "70000"),
        ("m --gpu-memory-utilization 0", "Error: gpu_memory_utilization must be in (0, 1]; got 0.0\n"),
        ("m --max-num-seqs 0", "Error: max_num_seqs must be in [1, 2147483647]; got 0\n"),
        ("m --no-such-flag", "--no-such-flag"),
    ],
)
def test_mistakes_are_named(configs: list[ServerConfig], arguments: str, problem: str) -> None:
    assert problem in serve(*arguments.split())
    assert configs == []


def test_the_key_may_come_from_the_environment(
    configs: list[ServerConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DESCANT_API_KEY", "secret")
    assert serve(str(tmp_path)) == ""
    assert configs[0].api_keys == ("secret",)


def test_help_groups_the_options() -> None:
    text = CliRunner().invoke(main.serve, ["--help"]).output
    headings = ["Model:", "Memory and batching:", "Adapters:", "Server:"]
    places = [text.index(f"\n{heading}\n") for heading in headings]
    assert places == sorted(places)
