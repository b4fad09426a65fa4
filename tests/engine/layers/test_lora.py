"""Batched LoRA against adapters merged into the weights, and against each request alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from descant_engine.adapters.manifest import TargetModule
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig, ModelShape
from descant_engine.models import attach_lora, load_model

from ..paged_model import AdapterTables, AdapterTensors, BlockPool, Conversation, PagedModel  # noqa: TID252

TOLERANCE = {"rtol": 1e-3, "atol": 5e-3}


def random_adapter(shape: ModelShape, seed: int, modules: list[TargetModule], max_rank: int = 30) -> AdapterTensors:
    """Another rank and scaling for every module; some layers left alone."""
    random = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    adapter: AdapterTensors = {}
    for layer in range(shape.num_layers):
        for module in modules:
            if number(0, 4) == 0:
                continue
            in_features, out_features = shape.linear_shape(module)
            rank = number(1, max_rank)
            lora_a = torch.randn(rank, in_features, generator=random) * 0.3
            lora_b = torch.randn(out_features, rank, generator=random) * 0.3
            adapter[layer, module] = (lora_a, lora_b, number(1, 8) / 8)
    return adapter


def merged_model(path: Path, folder: Path, adapter: AdapterTensors) -> Path:
    """The model with the adapter in its weights, as a checkpoint."""
    weights = load_file(path / "model.safetensors")
    for (layer, module), (lora_a, lora_b, scaling) in adapter.items():
        block = "self_attn" if module <= TargetModule.O_PROJ else "mlp"
        name = f"model.layers.{layer}.{block}.{module.name.lower()}.weight"
        weights[name] = weights[name] + scaling * (lora_b @ lora_a)
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text((path / "config.json").read_text())
    return folder


def open_model(path: Path, adapters: AdapterTables | None = None) -> PagedModel:
    config = resolve(EngineConfig(model=str(path), dtype="float32", device="cpu"))
    model = load_model(config)
    if adapters is not None:
        attach_lora(model)
    return PagedModel(model, BlockPool(config.shape), adapters)


def shape_of(path: Path) -> ModelShape:
    return resolve(EngineConfig(model=str(path), dtype="float32", device="cpu")).shape


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(1, 264, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


MODULE_SETS = {
    "all": list(TargetModule),
    "attention": [TargetModule.Q_PROJ, TargetModule.V_PROJ],
    "middle": [TargetModule.K_PROJ, TargetModule.O_PROJ, TargetModule.UP_PROJ],
    "single": [TargetModule.DOWN_PROJ],
}


@pytest.mark.parametrize("modules", MODULE_SETS.values(), ids=MODULE_SETS.keys())
def test_an_adapter_equals_its_merged_weights(tiny_llama: Path, tmp_path: Path, modules: list[TargetModule]) -> None:
    adapter = random_adapter(shape_of(tiny_llama), seed=5, modules=modules)
    adapters = AdapterTables(shape_of(tiny_llama))
    adapters.publish(3, adapter)
    token_ids = tokens(24, seed=1)
    got = open_model(tiny_llama, adapters).logits(token_ids, [11, 12, 1], slot=3)
    expected = open_model(merged_model(tiny_llama, tmp_path / "merged", adapter)).logits(token_ids, [24])
    base = open_model(tiny_llama).logits(token_ids, [24])
    torch.testing.assert_close(got, expected, **TOLERANCE)
    assert (got - base).abs().max() > 0.5, "the adapter must matter for this test to mean anything"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_requests_of_many_adapters_in_one_batch_equal_each_alone(
    random_model: Callable[..., Path], family: str
) -> None:
    path = random_model(family)
    shape = shape_of(path)
    adapters = AdapterTables(shape)
    for slot, modules in enumerate(MODULE_SETS.values()):
        adapters.publish(slot, random_adapter(shape, seed=slot, modules=modules))
    model = open_model(path, adapters)
    conversations = [Conversation(tokens(16, seed), slot) for seed, slot in enumerate([2, -1, 0, 1, 0, 3])]
    got: list[list[Tensor]] = [[] for _ in conversations]
    for lengths in ([7, 3, 9, 1, 1, 4], [1] * 6, [4] * 6, [1, 1, 1, 1, 1, 4]):
        for index, logits in enumerate(model.step(*zip(conversations, lengths, strict=True))):
            got[index].append(logits)
    for conversation, pieces in zip(conversations, got, strict=True):
        done = conversation.num_computed
        alone = model.logits(conversation.token_ids[:done], [done], conversation.slot)
        torch.testing.assert_close(torch.cat(pieces), alone, **TOLERANCE)
        assert torch.equal(torch.cat(pieces).argmax(-1), alone.argmax(-1))


def test_a_slot_with_new_content_is_read_anew(tiny_llama: Path) -> None:
    shape = shape_of(tiny_llama)
    adapters = AdapterTables(shape)
    model = open_model(tiny_llama, adapters)
    token_ids = tokens(9, seed=3)
    results = []
    for seed in (1, 2, 1):
        adapters.publish(0, random_adapter(shape, seed, list(TargetModule)))
        results.append(model.logits(token_ids, [9], slot=0))
    assert (results[0] - results[1]).abs().max() > 0.5
    assert torch.equal(results[0], results[2])


def test_more_sets_of_adapters_than_are_kept_at_hand(tiny_llama: Path) -> None:
    shape = shape_of(tiny_llama)
    adapters = AdapterTables(shape)
    for slot in range(6):
        adapters.publish(slot, random_adapter(shape, slot, [TargetModule.O_PROJ], max_rank=5))
    model = open_model(tiny_llama, adapters)
    token_ids = tokens(5, seed=4)
    first = [model.logits(token_ids, [5], slot) for slot in range(6)]
    again = [model.logits(token_ids, [5], slot) for slot in range(6)]
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


def test_a_step_without_adapters_leaves_the_base_product_alone(tiny_llama: Path) -> None:
    adapters = AdapterTables(shape_of(tiny_llama))  # its pool is NaN: touching it would show
    token_ids = tokens(12, seed=6)
    got = open_model(tiny_llama, adapters).logits(token_ids, [12])
    assert torch.equal(got, open_model(tiny_llama).logits(token_ids, [12]))


def test_bfloat16_stays_close_to_float32(tiny_llama: Path) -> None:
    shape = shape_of(tiny_llama)
    adapter = random_adapter(shape, 7, list(TargetModule), max_rank=8)
    token_ids = tokens(20, seed=8)
    exact_tables = AdapterTables(shape)
    exact_tables.publish(0, adapter)
    exact = open_model(tiny_llama, exact_tables).logits(token_ids, [20], slot=0)

    config = resolve(EngineConfig(model=str(tiny_llama), dtype="bfloat16", device="cpu"))
    model = load_model(config)
    attach_lora(model)
    tables = AdapterTables(shape, dtype=torch.bfloat16)
    tables.publish(0, adapter)
    rounded = PagedModel(model, BlockPool(shape, dtype=torch.bfloat16), tables).logits(token_ids, [13, 7], slot=0)
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).norm() / exact.norm()
    assert error < 0.05
