"""Reading models' configs, settling what the user left open, and refusing what would be computed wrongly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch

from descant_engine.checkpoint.model_config import UnsupportedModelError, read_model_config, resolve
from descant_engine.config import EngineConfig
from descant_engine.models import load_model


@pytest.fixture
def config_with(tiny_llama: Path, tmp_path: Path) -> Callable[..., str]:
    """config_with(key=value, ...) -> a model folder whose config.json says so."""

    def make(**changes: object) -> str:
        config = json.loads((tiny_llama / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        return str(tmp_path)

    return make


def test_shape(tiny_llama: Path) -> None:
    shape = read_model_config(str(tiny_llama)).shape
    assert shape.architecture == "LlamaForCausalLM"
    assert (shape.hidden_size, shape.intermediate_size, shape.vocab_size) == (96, 112, 264)
    assert (shape.num_layers, shape.num_q_heads, shape.num_kv_heads, shape.head_dim) == (3, 6, 2, 16)
    assert (shape.rope.kind, shape.rope.theta) == ("default", 10000.0)
    assert not shape.tie_word_embeddings


def test_qwen2_has_biases_on_q_k_and_v_only(random_model: Callable[..., Path]) -> None:
    shape = read_model_config(str(random_model("qwen2"))).shape
    assert (shape.attention_bias, shape.output_bias, shape.mlp_bias) == (True, False, False)


def test_defaults_on_the_cpu(tiny_llama: Path) -> None:
    config = resolve(EngineConfig(model=str(tiny_llama), device="cpu"))
    assert (config.max_num_seqs, config.max_num_batched_tokens, config.max_model_len) == (64, 512, 512)
    assert config.dtype in ("bfloat16", "float32")


def test_wishes_are_kept(tiny_llama: Path) -> None:
    user = EngineConfig(
        model=str(tiny_llama),
        device="cpu",
        dtype="float16",
        max_model_len=100,
        max_num_seqs=3,
        max_num_batched_tokens=50,
    )
    config = resolve(user)
    assert config.user is user
    assert (config.dtype, config.max_model_len, config.max_num_seqs, config.max_num_batched_tokens) == (
        "float16",
        100,
        3,
        50,
    )


@pytest.mark.parametrize("length", [0, -5, 513])
def test_a_context_beyond_the_models_is_refused_with_both_numbers(tiny_llama: Path, length: int) -> None:
    with pytest.raises(ValueError, match=rf"max_model_len={length} .* 1 to 512"):
        resolve(EngineConfig(model=str(tiny_llama), device="cpu", max_model_len=length))


def test_the_sliding_window_is_the_longest_context(random_model: Callable[..., Path]) -> None:
    assert read_model_config(str(random_model("mistral", sliding_window=128))).shape.max_position == 128


@pytest.mark.parametrize(
    ("rope", "max_position"),
    [
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, 1024),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 512),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)
def test_stretched_contexts(config_with: Callable[..., str], rope: dict[str, object], max_position: int) -> None:
    assert read_model_config(config_with(rope_parameters=rope)).shape.max_position == max_position


def test_end_of_sequence_ids_come_from_both_files(config_with: Callable[..., str]) -> None:
    path = config_with(eos_token_id=7)
    assert read_model_config(path).eos_token_ids == (7,)
    (Path(path) / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7, 3]}))
    assert read_model_config(path).eos_token_ids == (3, 7, 9)


def test_a_model_without_end_of_sequence(config_with: Callable[..., str]) -> None:
    assert read_model_config(config_with(eos_token_id=None)).eos_token_ids == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*LlamaForCausalLM, Mistral"),
        ({"model_type": "no_such_thing"}, "'no_such_thing'.*LlamaForCausalLM, Mistral"),
        ({"model_type": None}, "config cannot be read.*model_type"),
        ({"hidden_size": "96"}, "config cannot be read.*hidden_size"),
        ({"head_dim": None, "hidden_size": 97}, "hidden_size=97 is not a multiple"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' comes without low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "each kind of layer"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 1.0, "short_factor": [1.0] * 8,
                                 "long_factor": [1.0] * 8, "original_max_position_embeddings": 512}},
            "'longrope'.*default, linear, llama3, dynamic, yarn",
        ),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization 'awq'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"num_key_value_heads": 4}, "6 query heads cannot share 4 KV heads"),
    ],
    ids=["architecture", "unknown", "no-type", "wrong-type", "width", "rope-lacks", "rope-by-layer", "rope",
          "quantization", "activation", "heads"],
)  # fmt: skip
def test_what_cannot_be_computed_exactly_is_refused_by_name(
    config_with: Callable[..., str], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_model_config(config_with(**changes))


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache folder, empty, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("offline_hub")
def test_a_missing_model_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no such folder or \.gguf file, and not a hub id"):
        read_model_config(str(tmp_path / "nowhere" / "at" / "all"))
    with pytest.raises(UnsupportedModelError, match=r"'someone/nothing' not found: no such folder.*the hub gave: "):
        read_model_config("someone/nothing")


def test_a_hub_id_is_read_from_the_hubs_cache(offline_hub: Path, tiny_llama: Path) -> None:
    stored = offline_hub / "models--someone--tiny"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_llama, stored / "snapshots" / ("0" * 40))
    config = resolve(EngineConfig(model="someone/tiny", device="cpu", dtype="float32"))
    assert config.shape == read_model_config(str(tiny_llama)).shape
    assert load_model(config).compute_logits(torch.ones(1, 96)).shape == (1, 264)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        read_model_config(str(tmp_path))


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(UnsupportedModelError, match="config cannot be read"):
        read_model_config(str(tmp_path))


def test_deterministic_outputs_are_refused_on_the_cpu(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match="deterministic=True needs device=cuda"):
        resolve(EngineConfig(model=str(tiny_llama), device="cpu", deterministic=True))


def test_cuda_without_a_gpu_is_one_clear_error(tiny_llama: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device=cuda, but torch sees no CUDA device"):
        resolve(EngineConfig(model=str(tiny_llama), device="cuda"))
