"""What a loading thread makes of a file: the right numbers in the right blocks, or a message that says why not."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from descant_engine.adapters.manifest import AdapterManifest, ModuleLora, TargetModule
from descant_engine.adapters.safetensors_header import CorruptFile, RawHeader
from descant_engine.cache.adapter_layout import AdapterLayout, TilePlacement, plan_layout
from descant_engine.config import ModelShape, ResolvedConfig, RopeScaling
from descant_engine.runner.adapter_reading import AdapterRead, AdapterReader
from descant_engine.runner.host_blocks import HostBlocks
from descant_engine.runner.tile_copies import plan_file
from descant_engine.runner.transfer import tensor_of

Q, K, DOWN = TargetModule.Q_PROJ, TargetModule.K_PROJ, TargetModule.DOWN_PROJ
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Host:
    """A reader and the blocks that it writes to."""

    def __init__(self, config: ResolvedConfig) -> None:
        self.config = config
        self.dtype = DTYPES[config.dtype]
        self.blocks = HostBlocks(config.block_elements, self.dtype, max_blocks=64, is_pinned=False)
        self.reader = AdapterReader(self.blocks, self.dtype)

    def layout(self, manifest: AdapterManifest) -> AdapterLayout:
        return plan_layout(manifest, self.config.shape, self.config.block_elements)

    def read(self, manifest: AdapterManifest) -> AdapterRead:
        return self.reader.read(manifest, self.layout(manifest))

    def tile(self, read: AdapterRead, tile: TilePlacement) -> Tensor:
        words = self.blocks.words(read.block_ids[tile.block_index])
        return tensor_of(words, self.dtype)[tile.offset : tile.offset + tile.rows * tile.width]


@pytest.fixture
def host(config_of: Callable[..., ResolvedConfig]) -> Host:
    return Host(config_of())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=st.dictionaries(st.sampled_from(TargetModule), st.integers(1, 40), min_size=1),
    pool_dtype=st.sampled_from(list(DTYPES)),
    file_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_every_rank_row_arrives_whatever_ranks_and_dtypes(
    config_of: Callable[..., ResolvedConfig],
    save_adapter_file: Callable[..., AdapterManifest],
    assert_tiles: Callable[..., None],
    tmp_path: Path,
    ranks: dict[TargetModule, int],
    pool_dtype: str,
    file_dtype: torch.dtype,
) -> None:
    host = Host(config_of(dtype=pool_dtype))
    manifest = save_adapter_file(tmp_path / "a.safetensors", dict(sorted(ranks.items())), dtype=file_dtype)
    read = host.read(manifest)
    assert_tiles(manifest, host.layout(manifest), lambda tile: host.tile(read, tile))


def test_a_file_of_several_dtypes(
    host: Host,
    save_adapter_file: Callable[..., AdapterManifest],
    assert_tiles: Callable[..., None],
    tmp_path: Path,
) -> None:
    dtypes = {"lora_A": torch.float32, "2.Q_PROJ.lora_B": torch.float16}
    manifest = save_adapter_file(
        tmp_path / "a.safetensors",
        {Q: 3, DOWN: 5},
        dtype_of=lambda key: next((dtype for part, dtype in dtypes.items() if part in key), None),
    )
    read = host.read(manifest)
    assert_tiles(manifest, host.layout(manifest), lambda tile: host.tile(read, tile))


def test_a_reader_reads_one_file_after_the_other_into_blocks_of_their_own(
    host: Host,
    save_adapter_file: Callable[..., AdapterManifest],
    assert_tiles: Callable[..., None],
    tmp_path: Path,
) -> None:
    manifests = [save_adapter_file(tmp_path / f"{rank}", {K: rank, DOWN: 2}, seed=rank) for rank in (9, 30, 1)]
    reads = [host.read(manifest) for manifest in manifests]
    for manifest, read in zip(manifests, reads, strict=True):
        assert_tiles(manifest, host.layout(manifest), lambda tile, read=read: host.tile(read, tile))


def test_the_identity_is_taken_of_what_was_read_and_only_once(
    host: Host, save_adapter_file: Callable[..., AdapterManifest], tmp_path: Path
) -> None:
    manifest = replace(save_adapter_file(tmp_path / "a.safetensors", {Q: 4}), config_digest="ab" * 32)
    expected = sha256(b"\xab" * 32 + manifest.path.read_bytes()).hexdigest()
    assert host.read(manifest).content_digest == expected
    assert host.read(replace(manifest, content_digest="known")).content_digest == "known"


@pytest.mark.parametrize(
    ("value", "pool_dtype"),
    [
        (float("nan"), "bfloat16"),
        (-float("nan"), "float16"),
        (float("inf"), "float32"),
        (-float("inf"), "bfloat16"),
        (1e5, "float16"),
        (-1e39, "float32"),
    ],
)
def test_numbers_that_are_none_are_refused_with_the_tensors_name(
    config_of: Callable[..., ResolvedConfig],
    save_adapter_file: Callable[..., AdapterManifest],
    tmp_path: Path,
    value: float,
    pool_dtype: str,
) -> None:
    host = Host(config_of(dtype=pool_dtype))
    manifest = save_adapter_file(tmp_path / "a.safetensors", {Q: 4, DOWN: 4}, dtype=torch.float64)
    tensors = load_file(manifest.path)
    name = manifest.modules[7].lora_b_key
    tensors[name][-1, -1] = value
    save_file(tensors, manifest.path)
    with pytest.raises(ValueError, match=rf"a.safetensors: {name} holds NaN or infinite values in torch.{pool_dtype}"):
        host.read(manifest)


def test_the_largest_finite_numbers_are_served(
    host: Host,
    save_adapter_file: Callable[..., AdapterManifest],
    assert_tiles: Callable[..., None],
    tmp_path: Path,
) -> None:
    manifest = save_adapter_file(tmp_path / "a.safetensors", {Q: 4})
    tensors = load_file(manifest.path)
    largest = torch.finfo(torch.bfloat16).max
    tensors[manifest.modules[0].lora_a_key][0, :3] = torch.tensor([largest, -largest, -0.0], dtype=torch.bfloat16)
    save_file(tensors, manifest.path)
    read = host.read(manifest)
    assert_tiles(manifest, host.layout(manifest), lambda tile: host.tile(read, tile))


@pytest.mark.parametrize("length", [3, 60, -1])
def test_a_file_that_is_cut_short_is_refused(
    host: Host, save_adapter_file: Callable[..., AdapterManifest], tmp_path: Path, length: int
) -> None:
    manifest = save_adapter_file(tmp_path / "a.safetensors", {Q: 4})
    manifest.path.write_bytes(manifest.path.read_bytes()[:length])
    with pytest.raises(CorruptFile, match=r"a\.safetensors"):
        host.read(manifest)


def test_a_file_with_other_tensors_than_registered_is_refused(
    host: Host, save_adapter_file: Callable[..., AdapterManifest], tmp_path: Path
) -> None:
    manifest = save_adapter_file(tmp_path / "a.safetensors", {Q: 4})
    for ranks in ({Q: 5}, {K: 4}):
        save_adapter_file(manifest.path, ranks)
        with pytest.raises(CorruptFile, match="register the adapter again"):
            host.read(manifest)


def test_an_adapter_of_an_8b_model_takes_few_copies() -> None:
    """Each is a moment in which a loading thread wants the interpreter; there are 256 tensors."""
    shape = ModelShape(
        architecture="LlamaForCausalLM",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_q_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        max_position=8192,
        rope=RopeScaling(kind="default", theta=5e5),
        tie_word_embeddings=False,
    )
    modules = [
        ModuleLora(layer, module, 8, 1.0, f"{layer}.{module}.A", f"{layer}.{module}.B")
        for layer in range(32)
        for module in (TargetModule.Q_PROJ, TargetModule.K_PROJ, TargetModule.V_PROJ, TargetModule.O_PROJ)
    ]
    shapes = {}
    for module in modules:
        in_features, out_features = shape.linear_shape(module.module)
        shapes |= {module.lora_a_key: [8, in_features], module.lora_b_key: [out_features, 8]}
    header, stop = {}, 0
    for name, size in sorted(shapes.items()):
        start, stop = stop, stop + 2 * size[0] * size[1]
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [start, stop]}
    layout = plan_layout(AdapterManifest("a", Path("a"), tuple(modules)), shape, 16 * shape.kv_elements_per_token)
    plan = plan_file(RawHeader("a", json.dumps(header).encode(), stop), tuple(modules), layout)
    assert sum(copy.shape[0] for copy in plan.copies) == len(layout.tiles) == 256
    assert len(plan.copies) <= 80
    louder = tuple(replace(module, scaling=2.0) for module in modules)
    assert plan_file(RawHeader("a", json.dumps(header).encode(), stop), louder, layout) is plan
