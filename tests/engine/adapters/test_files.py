"""PEFT itself is the oracle for what an adapter means; what it would do silently wrong is refused."""

import json
import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from descant_engine.adapters.files import AdapterRefused, CorruptFile, check_unchanged, content_digest, read_adapter
from descant_engine.adapters.manifest import TargetModule
from descant_engine.adapters.safetensors_header import read_raw_header
from descant_engine.config import ModelShape, RopeScaling

NUM_LAYERS = 12
HIDDEN, INTERMEDIATE = 16, 24
SHAPE = ModelShape(
    architecture="LlamaForCausalLM",
    vocab_size=32,
    hidden_size=HIDDEN,
    intermediate_size=INTERMEDIATE,
    num_layers=NUM_LAYERS,
    num_q_heads=4,
    num_kv_heads=2,
    head_dim=4,
    rms_norm_eps=1e-6,
    max_position=64,
    rope=RopeScaling(kind="default", theta=1e4),
    tie_word_embeddings=False,
)


def _base_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=HIDDEN,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )


def _save(folder: Path, **lora: Any) -> dict[str, tuple[int, float]]:
    """Saves an adapter with PEFT; returns what PEFT made of it, module name -> (rank, scaling)."""
    model = get_peft_model(_base_model(), LoraConfig(task_type="CAUSAL_LM", **lora))
    model.save_pretrained(folder)
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    _save(folder, r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A fresh copy of `saved`, for tests that damage it."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def _edit_config(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        {"r": 5, "lora_alpha": 3, "target_modules": "all-linear"},
        {"r": 4, "target_modules": ["q_proj", "o_proj", "gate_proj"], "use_rslora": True},
        {"r": 4, "target_modules": r".*layers\.(1|11)\.mlp\.(up|down)_proj"},
        {"r": 4, "target_modules": ["self_attn.k_proj", "model.layers.3.mlp.up_proj"]},
        {"r": 4, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 10]},
        {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": 2, "layers_pattern": "layers"},
        {"r": 4, "target_modules": "all-linear", "exclude_modules": ["mlp.up_proj", "v_proj"]},
        {"r": 4, "target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.\d\..*"},
        # A pattern is the end of a name: layers.1 does not mean layers.11, and q_proj means every q_proj.
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 3, "(gate|up)_proj": 9},
            "alpha_pattern": {r"layers\.1\d\.mlp\..*": 5, "^model.layers.0.self_attn.k_proj": 1, "k_proj": 32},
        },
    ],
    ids=lambda lora: "-".join(sorted(lora)),
)
def test_ranks_and_scalings_are_peft_s(tmp_path: Path, lora: dict[str, Any]) -> None:
    expected = _save(tmp_path, **lora)
    manifest = read_adapter(tmp_path, SHAPE, max_lora_rank=16)
    found = {
        module.lora_a_key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            module.lora_rank,
            module.scaling,
        )
        for module in manifest.modules
    }
    assert found == expected


def test_modules_are_sorted_and_name_their_tensors(saved: Path) -> None:
    manifest = read_adapter(saved, SHAPE, max_lora_rank=16)
    assert [(m.layer, m.module) for m in manifest.modules] == [
        (layer, module) for layer in range(NUM_LAYERS) for module in (TargetModule.Q_PROJ, TargetModule.DOWN_PROJ)
    ]
    tensors = load_file(manifest.path)
    assert {key for m in manifest.modules for key in (m.lora_a_key, m.lora_b_key)} == tensors.keys()
    assert tensors[manifest.modules[1].lora_a_key].shape == (4, INTERMEDIATE)
    assert manifest.modules[0].scaling == 2.0


def test_the_identity_covers_both_files_and_nothing_else(
    adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    original = _content_digest(adapter)
    assert len(original) == 64
    elsewhere = Path(copytree(adapter, tmp_path_factory.mktemp("elsewhere") / "copy"))
    assert _content_digest(elsewhere) == original
    _edit_config(adapter, lora_alpha=9)
    other_config = _content_digest(adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    assert len({original, other_config, _content_digest(adapter)}) == 3


def _content_digest(folder: Path) -> str:
    manifest = read_adapter(folder, SHAPE, 16)
    header = read_raw_header(manifest.path)
    data = manifest.path.read_bytes()[-header.num_data_bytes :]
    return content_digest(manifest.config_digest, header, memoryview(data))


def test_a_registration_is_named_without_reading_weights(adapter: Path) -> None:
    first = read_adapter(adapter, SHAPE, 16)
    assert first.content_digest is None
    assert read_adapter(adapter, SHAPE, 16).digest == first.digest
    _edit_config(adapter, lora_alpha=9)
    other_config = read_adapter(adapter, SHAPE, 16)
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert len({first.digest, other_config.digest, read_adapter(adapter, SHAPE, 16).digest}) == 3


def test_what_adapters_of_one_recipe_have_in_common_is_worked_out_once(
    adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Path(copytree(adapter, tmp_path_factory.mktemp("other") / "copy"))
    assert read_adapter(other, SHAPE, 16).modules is read_adapter(adapter, SHAPE, 16).modules
    _edit_config(other, lora_alpha=9)
    assert read_adapter(other, SHAPE, 16).modules[0].scaling == 9 / 4


def test_a_file_that_was_written_over_is_noticed(adapter: Path) -> None:
    manifest = read_adapter(adapter, SHAPE, 16)
    check_unchanged(manifest)
    tensors = load_file(manifest.path)
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, manifest.path)
    with pytest.raises(CorruptFile, match="register the adapter again"):
        check_unchanged(manifest)
    check_unchanged(read_adapter(adapter, SHAPE, 16))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora"),
        ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"target_modules": ["q_proj", "down_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ".*"}, "model.embed_tokens"),
        ({"target_modules": "("}, "regular expression"),
        ({"target_modules": "(", "exclude_modules": ".*"}, "regular expression"),
        ({"rank_pattern": {"[": 3}}, "regular expression"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": ["c_attn"]}, "target_modules"),
        ({"target_modules": 7}, "target_modules"),
        ({"target_modules": "q_proj|down_proj", "layers_to_transform": [1]}, "layers_to_transform"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform"),
        ({"target_modules": ["q_proj"]}, "down_proj"),
        ({"target_modules": ["q_proj", "k_proj", "down_proj"]}, "k_proj.lora_A.weight' is missing"),
        ({"layers_to_transform": [0]}, "target_modules does not include"),
        ({"r": 3}, r"has shape \[4, 16\], but .* need \[3, 16\]"),
        ({"rank_pattern": {"down_proj": 2}}, r"need \[2, 24\]"),
        ({"r": 0}, "r must be a positive integer"),
        ({"r": True}, "r must be"),
        ({"r": "4"}, "r must be"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be"),
        ({"lora_alpha": "8"}, "lora_alpha must be"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
        ({"use_rslora": "yes"}, "use_rslora"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_served_exactly_is_refused_by_name(adapter: Path, fields: dict[str, Any], named: str) -> None:
    _edit_config(adapter, **fields)
    with pytest.raises(AdapterRefused, match=named):
        read_adapter(adapter, SHAPE, 16)


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "layers_pattern"])
def test_a_pattern_that_takes_for_ever_is_refused_in_time(adapter: Path, field: str) -> None:
    endless = r"((a|[a-z0-9_.]|\w|.|\W)+)+(?<!proj)(?<!tokens)(?<!head)"
    fields = {field: {endless: 4} if field == "rank_pattern" else endless}
    if field == "layers_pattern":
        fields |= {"layers_to_transform": [1]}
    _edit_config(adapter, **fields)
    started = time.monotonic()
    with pytest.raises(AdapterRefused, match="takes too long to match"):
        read_adapter(adapter, SHAPE, 16)
    assert time.monotonic() - started < 5


def test_a_pattern_that_hangs_the_standard_library_is_answered(adapter: Path) -> None:
    _edit_config(adapter, target_modules="([a-z0-9_.]+)+!")
    with pytest.raises(AdapterRefused, match="matches no linear layer"):
        read_adapter(adapter, SHAPE, 16)


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1, "inference_mode": False, "revision": "main"},
        {"task_type": None, "runtime_config": {"ephemeral_gpu_offload": False}, "eva_config": {"rho": 2.0}},
        {"a_field_of_tomorrow": None, "another": False, "third": {}, "use_dora": False, "modules_to_save": []},
        {"bias": "none", "init_lora_weights": False, "base_model_name_or_path": "somewhere/else"},
    ],
)
def test_fields_that_do_not_matter_are_accepted(adapter: Path, fields: dict[str, Any]) -> None:
    modules = read_adapter(adapter, SHAPE, 16).modules
    _edit_config(adapter, **fields)
    assert read_adapter(adapter, SHAPE, 16).modules == modules


def test_a_rank_over_the_limit_is_refused_with_both_numbers(saved: Path) -> None:
    with pytest.raises(AdapterRefused, match=r"r is 4.*max_lora_rank=3"):
        read_adapter(saved, SHAPE, max_lora_rank=3)


@pytest.mark.parametrize(
    ("key", "tensor", "named"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.zeros(4, 16).int(), "dtype I32"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.zeros(16, 4), "shape"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", torch.zeros(16), "lora_B.bias"),
        ("base_model.model.model.layers.12.self_attn.q_proj.lora_A.weight", torch.zeros(4, 16), "12 layers"),
        ("base_model.model.lm_head.weight", torch.zeros(32, 16), "lm_head"),
        ("base_model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.zeros(4, 16), "layers.0"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(adapter: Path, key: str, tensor: torch.Tensor, named: str) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path) | {key: tensor}, path)
    with pytest.raises(AdapterRefused, match=named):
        read_adapter(adapter, SHAPE, 16)


def test_missing_files_are_named(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterRefused, match=r"adapter_model\.bin is a pickle"):
        read_adapter(adapter, SHAPE, 16)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(AdapterRefused, match=r"no adapter_config\.json"):
        read_adapter(adapter, SHAPE, 16)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"r": ' + b"1" * 5000 + b"}"])
def test_a_damaged_config_is_refused(adapter: Path, text: bytes) -> None:
    (adapter / "adapter_config.json").write_bytes(text)
    with pytest.raises(AdapterRefused, match=r"adapter_config\.json|peft_type"):
        read_adapter(adapter, SHAPE, 16)


def _header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def _entry(start: int, stop: int, shape: list[object] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def _damaged_files() -> Iterator[bytes]:
    data = bytes(16)
    yield b""
    yield b"\x01\x00"
    yield struct.pack("<Q", 2**63) + data
    yield struct.pack("<Q", 100_000_001) + data
    yield struct.pack("<Q", 16) + b"not json at all!"
    yield struct.pack("<Q", 2) + b"\xff\xff"
    yield _header([1, 2]) + data
    yield _header({"a": 3}) + data
    yield _header({"a": _entry(0, 16, dtype="F33")}) + data
    yield _header({"a": _entry(0, 16, shape=[5])}) + data
    yield _header({"a": _entry(0, 16, shape=[-2, -2])}) + data
    yield _header({"a": _entry(0, 16, shape=[4.0])}) + data
    yield _header({"a": _entry(0, 16, shape=[4, True])}) + data
    yield _header({"a": _entry(0, 16, shape=[2**40, 2**40, 2**40])}) + data
    yield _header({"a": _entry(0, 32)}) + data
    yield _header({"a": _entry(0, 12)}) + data
    yield _header({"a": _entry(4, 16)}) + data
    yield _header({"a": _entry(0, 8), "b": _entry(4, 16)}) + data
    yield _header({"a": _entry(0, 4), "b": _entry(8, 16)}) + data
    yield _header({"a": _entry(16, 0, shape=[0])}) + data
    twice = b'{"a":%b,"a":%b}' % ((json.dumps(_entry(0, 16)).encode(),) * 2)
    yield struct.pack("<Q", len(twice)) + twice + data
    deep = b"[" * 200_000
    yield struct.pack("<Q", len(deep)) + deep


@pytest.mark.parametrize("content", list(_damaged_files()), ids=lambda content: repr(content[8:48]))
def test_a_damaged_weight_file_is_refused_with_its_name(adapter: Path, content: bytes) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"adapter_model\.safetensors"):
        read_adapter(adapter, SHAPE, 16)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_refused_or_harmless_and_never_anything_else(
    saved: Path, adapter: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    content = bytearray((saved / name).read_bytes())
    for other in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / other).write_bytes((saved / other).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, min(len(content), 4000) - 1))
        content[position] = data.draw(st.integers(0, 255))
    stop = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    (adapter / name).write_bytes(content[:stop])
    try:
        manifest = read_adapter(adapter, SHAPE, 16)
    except (AdapterRefused, CorruptFile):
        return
    assert all(math.isfinite(module.scaling) and 0 < module.lora_rank <= 16 for module in manifest.modules)
