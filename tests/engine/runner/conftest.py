"""Adapter files and what must become of them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from descant_engine.adapters.manifest import AdapterManifest, ModuleLora, TargetModule
from descant_engine.cache.adapter_layout import AdapterLayout, TilePlacement
from descant_engine.config import Device, Dtype, EngineConfig, ModelShape, ResolvedConfig, RopeScaling

NUM_LAYERS = 12
"""More than ten: the file's order is by name, 0, 1, 10, 11, 2, ..."""
SHAPE = ModelShape(
    architecture="LlamaForCausalLM",
    vocab_size=32,
    hidden_size=32,
    intermediate_size=48,
    num_layers=NUM_LAYERS,
    num_q_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-6,
    max_position=64,
    rope=RopeScaling(kind="default", theta=1e4),
    tie_word_embeddings=False,
)


def make_config(device: Device = "cpu", dtype: Dtype = "bfloat16") -> ResolvedConfig:
    return ResolvedConfig(
        user=EngineConfig(model="m", enable_lora=True, adapter_host_bytes=1 << 20),
        shape=SHAPE,
        dtype=dtype,
        device=device,
        max_model_len=64,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        eos_token_ids=(2,),
    )


def save_adapter(
    path: Path,
    ranks: Mapping[TargetModule, int],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    dtype_of: Callable[[str], torch.dtype | None] = lambda key: None,
) -> AdapterManifest:
    """A file of random numbers and its manifest; every layer has the modules of `ranks`."""
    generator = torch.Generator().manual_seed(seed)
    tensors, modules = {}, []
    for layer in range(NUM_LAYERS):
        for module, lora_rank in ranks.items():
            in_features, out_features = SHAPE.linear_shape(module)
            keys = [f"model.layers.{layer}.{module.name}.lora_{matrix}.weight" for matrix in "AB"]
            for key, size in zip(keys, ((lora_rank, in_features), (out_features, lora_rank)), strict=True):
                tensors[key] = torch.randn(size, generator=generator).to(dtype_of(key) or dtype)
            modules.append(ModuleLora(layer, module, lora_rank, 0.5 + layer, *keys))
    save_file(tensors, path)
    return AdapterManifest(path.name, path, tuple(modules))


def check_tiles(manifest: AdapterManifest, layout: AdapterLayout, tile_at: Callable[[TilePlacement], Tensor]) -> None:
    """Asserts that every tile is its part of the file's tensors; `tile_at` gives [rows * width] of what is there."""
    tensors = load_file(manifest.path)
    modules = {(module.layer, module.module): module for module in manifest.modules}
    for tile in layout.tiles:
        module = modules[tile.layer, tile.module]
        whole = tensors[module.lora_a_key] if tile.is_lora_a else tensors[module.lora_b_key].T
        first = tile.tile * layout.rank_tile
        found = tile_at(tile).cpu().view(tile.rows, tile.width)
        assert torch.equal(found, whole[first : first + tile.rows].to(found.dtype)), tile


@pytest.fixture(scope="session")
def config_of() -> Callable[..., ResolvedConfig]:
    return make_config


@pytest.fixture(scope="session")
def save_adapter_file() -> Callable[..., AdapterManifest]:
    return save_adapter


@pytest.fixture(scope="session")
def assert_tiles() -> Callable[..., None]:
    return check_tiles
