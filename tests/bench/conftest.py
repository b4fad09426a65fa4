"""A model of a few thousand weights, read by nothing but its config: `load_format=dummy` makes the weights up."""

import json
from pathlib import Path

import pytest

TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-config")
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG))
    return folder


def run_module(main: object, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Calls a measurement's main with these arguments, as `python -m` would."""
    assert callable(main)
    monkeypatch.setattr("sys.argv", ["descant_bench", *map(str, arguments)])
    main()


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    return lambda main, *arguments: run_module(main, monkeypatch, *arguments)
