"""Placement of rank tiles: nothing overlaps, nothing straddles, little is wasted."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from descant_engine.adapters.manifest import AdapterManifest, ModuleLora, TargetModule
from descant_engine.cache.adapter_layout import AdapterLayout, plan_layout, rank_tile
from descant_engine.config import ModelShape, RopeScaling


def _shape(hidden: int, intermediate: int, layers: int, q_heads: int, kv_heads: int, head_dim: int) -> ModelShape:
    return ModelShape(
        architecture="LlamaForCausalLM",
        vocab_size=128,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_q_heads=q_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        max_position=8192,
        rope=RopeScaling(kind="default", theta=5e5),
        tie_word_embeddings=False,
    )


LLAMA_8B = _shape(4096, 14336, 32, 32, 8, 128)
SMOLLM2 = _shape(576, 1536, 30, 9, 3, 64)


def _manifest(ranks: dict[tuple[int, TargetModule], int], digest: str = "d") -> AdapterManifest:
    modules = tuple(ModuleLora(*site, rank, 1.0, "a", "b") for site, rank in sorted(ranks.items()))
    return AdapterManifest(digest, Path("adapter_model.safetensors"), modules)


def _all_linear(shape: ModelShape, *ranks: int) -> AdapterManifest:
    """Every linear layer, the ranks by turns."""
    sites = [(layer, module) for layer in range(shape.num_layers) for module in TargetModule]
    return _manifest({site: ranks[index % len(ranks)] for index, site in enumerate(sites)})


def _num_elements(manifest: AdapterManifest, shape: ModelShape) -> int:
    return sum(m.lora_rank * sum(shape.linear_shape(m.module)) for m in manifest.modules)


def _check(layout: AdapterLayout, manifest: AdapterManifest, shape: ModelShape, block_elements: int) -> None:
    ends = [0] * layout.num_blocks
    for tile in sorted(layout.tiles, key=lambda tile: (tile.block_index, tile.offset)):
        assert tile.offset >= ends[tile.block_index], "tiles overlap"
        assert tile.offset % 16 == 0 or block_elements % 16
        ends[tile.block_index] = tile.offset + tile.rows * tile.width
    assert all(0 < end <= block_elements for end in ends)
    rows: dict[tuple[int, TargetModule, bool], list[int]] = {}
    for tile in layout.tiles:
        assert tile.width == shape.linear_shape(tile.module)[0 if tile.is_lora_a else 1]
        site_rows = rows.setdefault((tile.layer, tile.module, tile.is_lora_a), [])
        assert tile.tile == len(site_rows)
        site_rows.append(tile.rows)
    for module in manifest.modules:
        for is_lora_a in (True, False):
            site_rows = rows.pop((module.layer, module.module, is_lora_a))
            assert sum(site_rows) == module.lora_rank
            assert set(site_rows[:-1]) <= {layout.rank_tile}
    assert not rows


@pytest.mark.parametrize("ranks", [(8,), (16,), (64,), (8, 16, 64), (1,), (5, 33)], ids=str)
@pytest.mark.parametrize("shape", [LLAMA_8B, SMOLLM2], ids=["8b", "smollm2"])
def test_at_most_a_twentieth_and_a_block_is_wasted(shape: ModelShape, ranks: tuple[int, ...]) -> None:
    block_elements = 16 * shape.kv_elements_per_token
    manifest = _all_linear(shape, *ranks)
    layout = plan_layout(manifest, shape, block_elements)
    _check(layout, manifest, shape, block_elements)
    assert layout.rank_tile == 16
    assert layout.num_blocks * block_elements <= 1.05 * _num_elements(manifest, shape) + block_elements


def test_adapters_of_one_shape_are_packed_once() -> None:
    block_elements = 16 * SMOLLM2.kv_elements_per_token
    first, second = (_manifest({(0, TargetModule.Q_PROJ): 8}, digest) for digest in "ab")
    assert plan_layout(first, SMOLLM2, block_elements) is plan_layout(second, SMOLLM2, block_elements)


@pytest.mark.parametrize(("block_elements", "rows"), [(16 * 1536, 16), (16 * 1536 - 1, 8), (1536 * 3, 2), (1536, 1)])
def test_tiles_are_as_tall_as_blocks_allow(block_elements: int, rows: int) -> None:
    assert rank_tile(SMOLLM2, block_elements) == rows


def test_a_block_too_small_for_one_row_is_refused_with_the_size_that_would_do() -> None:
    shape = _shape(576, 6000, 1, 2, 1, 16)
    with pytest.raises(ValueError, match=r"has 512 elements.*up to 6000; use block_size=188 or more"):
        rank_tile(shape, 16 * shape.kv_elements_per_token)
    assert rank_tile(shape, 188 * shape.kv_elements_per_token) == 1


@settings(max_examples=150, deadline=None)
@given(
    ranks=st.dictionaries(
        st.tuples(st.integers(0, 2), st.sampled_from(TargetModule)), st.integers(1, 70), min_size=1, max_size=21
    ),
    hidden=st.integers(1, 60),
    intermediate=st.integers(1, 90),
    block_size=st.integers(1, 40),
)
def test_any_adapter_of_any_shape_is_placed_whole(
    ranks: dict[tuple[int, TargetModule], int], hidden: int, intermediate: int, block_size: int
) -> None:
    shape = _shape(hidden, intermediate, 3, 3, 1, 5)
    block_elements = block_size * shape.kv_elements_per_token
    manifest = _manifest(ranks)
    try:
        layout = plan_layout(manifest, shape, block_elements)
    except ValueError:
        assert block_elements < max(hidden, intermediate, 15)
        return
    _check(layout, manifest, shape, block_elements)
