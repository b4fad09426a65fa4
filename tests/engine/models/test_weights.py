"""Checkpoints in every layout that can be read, and what is said about those that cannot."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from descant_engine.checkpoint.model_config import UnsupportedModelError, resolve
from descant_engine.config import EngineConfig
from descant_engine.models import load_model

from ..paged_model import BlockPool, PagedModel  # noqa: TID252

TOKENS = [5, 9, 200, 31, 77]
Q_WEIGHT = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def model_copy(tiny_llama: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    return tmp_path


def logits_of(path: Path, **config: object) -> Tensor:
    resolved = resolve(EngineConfig(model=str(path), dtype="float32", device="cpu", **config))  # type: ignore[arg-type]
    return PagedModel(load_model(resolved), BlockPool(resolved.shape)).logits(TOKENS, [len(TOKENS)])


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_model_is_ready_to_run(tiny_llama: Path) -> None:
    model = load_model(resolve(EngineConfig(model=str(tiny_llama), dtype="bfloat16", device="cpu")))
    assert not model.training
    parameters = list(model.parameters())
    assert parameters
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad and not p.is_meta for p in parameters)
    assert torch.get_default_dtype() == torch.float32


def test_sharded_checkpoint(tiny_llama: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).save_pretrained(
        tmp_path, max_shard_size="200KB"
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(logits_of(tmp_path), logits_of(tiny_llama))


def test_old_checkpoints_carry_a_rotary_table_that_is_not_needed(model_copy: Path, tiny_llama: Path) -> None:
    rewrite(model_copy, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert torch.equal(logits_of(model_copy), logits_of(tiny_llama))


def test_a_tied_head_in_the_file_is_the_embedding_again(random_model: Callable[..., Path], tmp_path: Path) -> None:
    tied = random_model("llama", tied=True)
    (tmp_path / "config.json").write_bytes((tied / "config.json").read_bytes())
    tensors = load_file(tied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(logits_of(tmp_path), logits_of(tied))


def test_dummy_weights_follow_the_seed(model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    first, again, other = (logits_of(model_copy, load_format="dummy", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.isfinite(first).all()
    assert not torch.equal(first, other)


def test_truncated_file(model_copy: Path) -> None:
    file = model_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors is damaged or incomplete"):
        logits_of(model_copy)


def test_file_of_garbage(model_copy: Path) -> None:
    (model_copy / "model.safetensors").write_bytes(b"\xff" * 4096)
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors is damaged or incomplete"):
        logits_of(model_copy)


def test_missing_tensor(model_copy: Path) -> None:
    rewrite(model_copy, lambda tensors: tensors.pop(Q_WEIGHT))
    with pytest.raises(UnsupportedModelError, match=rf"missing, the first is {Q_WEIGHT}.*model\.safetensors"):
        logits_of(model_copy)


def test_unknown_tensor(model_copy: Path) -> None:
    rewrite(model_copy, lambda tensors: tensors.update({"model.layers.0.surprise.weight": torch.ones(2)}))
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors: tensor model\.layers\.0\.surprise\.weight"):
        logits_of(model_copy)


def test_tensor_of_the_wrong_shape(model_copy: Path) -> None:
    rewrite(model_copy, lambda tensors: tensors.update({Q_WEIGHT: torch.ones(95, 96)}))
    with pytest.raises(UnsupportedModelError, match=rf"{Q_WEIGHT} has shape \[95, 96\].*\[96, 96\]"):
        logits_of(model_copy)


def test_shard_that_the_index_names_is_not_there(model_copy: Path) -> None:
    index = {"weight_map": {Q_WEIGHT: "model-00002-of-00002.safetensors"}}
    (model_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModelError, match=r"model-00002-of-00002\.safetensors, which is not in the folder"):
        logits_of(model_copy)


def test_folder_without_weights(model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no \*\.safetensors file"):
        logits_of(model_copy)
