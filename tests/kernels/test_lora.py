import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from descant_kernels import (
    ProjectionGroup,
    lora_expand,
    lora_expand_silu_mul,
    lora_shrink,
    reference,
    segment_tokens,
    silu_mul,
)

Check = Callable[[Tensor, Tensor], None]
NUM_LAYERS, NUM_MODULES, LAYER = 2, 4, 1


@dataclass(frozen=True)
class Tables:
    pool: Tensor
    a_offsets: Tensor
    b_offsets: Tensor
    lora_ranks: Tensor
    scalings: Tensor
    rank_tile: int


def build_tables(
    ranks: list[list[int]], in_features: int, group: ProjectionGroup, rank_tile: int, dtype: torch.dtype, device: str
) -> Tables:
    """Adapters of ranks[slot][module] in layer LAYER, tiles strewn over a pool that is NaN everywhere else."""
    max_tiles = max(1, -(-max(max(row) for row in ranks) // rank_tile))
    entries = (len(ranks), NUM_LAYERS, NUM_MODULES)
    lora_ranks = torch.zeros(entries, dtype=torch.int32)
    offsets = torch.full((2, *entries, max_tiles), 1 << 40, dtype=torch.int64)
    tiles: list[Tensor] = []
    used = 0
    for slot, row in enumerate(ranks):
        for index, rank in enumerate(row):
            module = group.first_module + index
            lora_ranks[slot, LAYER, module] = rank
            for side, width in enumerate((in_features, group.out_features[index])):
                for tile, first in enumerate(range(0, rank, rank_tile)):
                    height = min(rank_tile, rank - first)
                    offsets[side, slot, LAYER, module, tile] = used
                    size = math.ceil((height * width + 1) / 8) * 8
                    content = torch.full((size,), float("nan"), dtype=dtype)
                    content[: height * width] = torch.randn(height * width) / width**0.5
                    tiles.append(content)
                    used += size
    pool = torch.cat(tiles) if tiles else torch.full((8,), float("nan"), dtype=dtype)
    scalings = torch.rand(entries) + 0.5
    tensors = (pool, offsets[0].contiguous(), offsets[1].contiguous(), lora_ranks, scalings)
    return Tables(*(tensor.to(device) for tensor in tensors), rank_tile=rank_tile)


def check_against_dense(
    tables: Tables, group: ProjectionGroup, x: Tensor, slots: list[int], segment_size: int, assert_close: Check
) -> None:
    """Both kernels against float64 products, `out` a slice of a wider buffer, all of it NaN."""
    token_adapter_slot = torch.tensor(slots, dtype=torch.int32, device=x.device)
    segments = segment_tokens(token_adapter_slot, segment_size=segment_size)
    width = sum(group.out_features)
    buffer = torch.full((len(slots), width + 8), float("nan"), dtype=x.dtype, device=x.device)
    out = buffer[:, :width]
    expected = torch.zeros(len(slots), width, dtype=torch.float64, device=x.device)
    for token, slot in enumerate(slots):
        for index, columns in enumerate(expected[token].split(group.out_features) if slot >= 0 else ()):
            entry = (slot, LAYER, group.first_module + index)
            lora_a = reference.rank_rows(tables, tables.a_offsets, entry, x.shape[1]).double()
            lora_b = reference.rank_rows(tables, tables.b_offsets, entry, columns.shape[0]).double()
            columns.copy_(tables.scalings[entry].double() * (x[token].double() @ lora_a.T @ lora_b))
    by_reference = torch.empty_like(out)
    partials = reference.lora_shrink(x, tables, LAYER, group, segments)
    reference.lora_expand(partials, tables, LAYER, group, segments, by_reference)
    assert_close(by_reference, expected.to(x.dtype))
    lora_expand(lora_shrink(x, tables, LAYER, group, segments), tables, LAYER, group, segments, out)
    assert_close(out, expected.to(x.dtype))
    assert buffer[:, width:].isnan().all()


GROUPS = {
    "qkv": ProjectionGroup(0, (160, 32, 32)),
    "gate_up": ProjectionGroup(2, (144, 144)),
    "down": ProjectionGroup(3, (72,)),
    "odd widths": ProjectionGroup(1, (33, 7)),
}
BATCHES = {
    "no token": [],
    "all base": [-1, -1, -1],
    "one adapter": [1] * 18,
    "all distinct": [0, 1, 2, 3],
    "mixed": [2, -1, 0, 0, 3, 2, -1, 1, 2],
}


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES.keys())
def test_any_mix_of_adapters_and_ranks(
    device: str, dot_dtype: torch.dtype, group: ProjectionGroup, slots: list[int], assert_close: Check
) -> None:
    modules = len(group.out_features)
    ranks = [[rank] * modules for rank in (8, 16, 3, 20)]
    ranks[2][0] = 0
    in_features = 41 if group.out_features == (33, 7) else 96
    tables = build_tables(ranks, in_features, group, 8, dot_dtype, device)
    x = torch.randn(len(slots), in_features + 8, dtype=dot_dtype, device=device)[:, :in_features]
    check_against_dense(tables, group, x, slots, 16, assert_close)


@pytest.mark.parametrize("rank_tile", [4, 8, 16, 32])
@pytest.mark.parametrize("seed", range(6))
def test_random_ranks_and_batches(device: str, rank_tile: int, seed: int, assert_close: Check) -> None:
    torch.manual_seed(100 * rank_tile + seed)
    group = ProjectionGroup(seed % 2, (64, 40, 24)[: 1 + seed % 3])
    ranks = torch.randint(0, 41, (5, len(group.out_features))).tolist()
    slots = torch.randint(-1, 5, (int(torch.randint(1, 30, (1,))),)).tolist()
    tables = build_tables(ranks, 72, group, rank_tile, torch.float32, device)
    check_against_dense(tables, group, torch.randn(len(slots), 72, device=device), slots, 16, assert_close)


def test_large_ranks_go_round_the_lanes(device: str, assert_close: Check) -> None:
    group = ProjectionGroup(0, (48,))
    tables = build_tables([[131], [64]], 48, group, 16, torch.float32, device)
    check_against_dense(tables, group, torch.randn(4, 48, device=device), [0, 1, -1, 0], 16, assert_close)


def test_many_input_splits(device: str, assert_close: Check) -> None:
    group = ProjectionGroup(0, (32, 16))
    tables = build_tables([[5, 9], [16, 2]], 1416, group, 8, torch.float32, device)
    x = torch.randn(6, 1416, device=device)
    check_against_dense(tables, group, x, [0, 1, 1, -1, 0, 1], 16, assert_close)


@pytest.mark.parametrize("segment_size", [32, 128])
def test_longer_segments(device: str, segment_size: int, assert_close: Check) -> None:
    group = ProjectionGroup(0, (40,))
    tables = build_tables([[8], [12]], 64, group, 8, torch.float32, device)
    check_against_dense(
        tables, group, torch.randn(140, 64, device=device), [0] * 90 + [1] * 50, segment_size, assert_close
    )


def test_a_token_gets_the_same_bits_in_any_batch(device: str) -> None:
    group = ProjectionGroup(0, (64,))
    tables = build_tables([[16], [24], [8]], 1100, group, 8, torch.float32, device)
    x = torch.randn(20, 1100, device=device)

    def update(tokens: list[int], slots: list[int]) -> Tensor:
        segments = segment_tokens(torch.tensor(slots, dtype=torch.int32, device=device))
        out = torch.empty(len(tokens), 64, device=device)
        rows = x[tokens].contiguous()
        lora_expand(lora_shrink(rows, tables, LAYER, group, segments), tables, LAYER, group, segments, out)
        return out

    slots = [token % 4 - 1 for token in range(20)]
    together = update(list(range(20)), slots)
    assert torch.equal(together, update(list(range(20)), slots))
    for token in (1, 6, 19):
        assert torch.equal(together[token], update([token], [slots[token]])[0])


@pytest.mark.parametrize("segment_size", [16, 64])
def test_expand_within_the_activation(
    device: str, dot_dtype: torch.dtype, segment_size: int, assert_close: Check
) -> None:
    group = GROUPS["gate_up"]
    tables = build_tables([[8, 8], [16, 3], [0, 20], [40, 0]], 96, group, 8, dot_dtype, device)
    slots = torch.tensor([2, -1, 0, 0, 3, 2, -1, 1, 2] + [1] * 20, dtype=torch.int32, device=device)
    x = torch.randn(len(slots), 96, dtype=dot_dtype, device=device)
    gate_up = torch.randn(len(slots), 300, dtype=dot_dtype, device=device)[:, 4:292]
    segments = segment_tokens(slots, segment_size=segment_size)
    inputs = lora_shrink(x, tables, LAYER, group, segments), tables, LAYER, group, segments
    result = lora_expand_silu_mul(*inputs, gate_up)
    assert_close(result, reference.lora_expand_silu_mul(*inputs, gate_up))
    assert_close(result[slots == -1], silu_mul(gate_up[slots == -1]))


def test_refuses_a_gate_of_another_width(device: str) -> None:
    group = GROUPS["gate_up"]
    tables = build_tables([[4, 4]], 16, group, 8, torch.float32, device)
    segments = segment_tokens(torch.zeros(1, dtype=torch.int32, device=device))
    partials = lora_shrink(torch.randn(1, 16, device=device), tables, LAYER, group, segments)
    with pytest.raises(ValueError, match="gate_up must be"):
        lora_expand_silu_mul(partials, tables, LAYER, group, segments, torch.zeros(1, 144, device=device))


def test_refuses_another_dtype_than_the_pool(device: str) -> None:
    group = ProjectionGroup(0, (8,))
    tables = build_tables([[4]], 16, group, 8, torch.float16, device)
    segments = segment_tokens(torch.zeros(1, dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match="must agree"):
        lora_shrink(torch.randn(1, 16, device=device), tables, LAYER, group, segments)


def test_refuses_an_output_of_another_width(device: str) -> None:
    group = ProjectionGroup(0, (8,))
    tables = build_tables([[4]], 16, group, 8, torch.float32, device)
    segments = segment_tokens(torch.zeros(1, dtype=torch.int32, device=device))
    partials = lora_shrink(torch.randn(1, 16, device=device), tables, LAYER, group, segments)
    with pytest.raises(ValueError, match="out must be"):
        lora_expand(partials, tables, LAYER, group, segments, torch.zeros(1, 9, device=device))


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 64, 300])
@pytest.mark.parametrize("shape", [(4096, (4096, 1024, 1024)), (4096, (14336, 14336)), (14336, (4096,))])
def test_8b_shapes(num_tokens: int, shape: tuple[int, tuple[int, ...]], assert_close: Check) -> None:
    in_features, widths = shape
    group = ProjectionGroup(0, widths)
    ranks = [[rank] * len(widths) for rank in (8, 16, 64, 5)]
    tables = build_tables(ranks, in_features, group, 8, torch.bfloat16, "cuda")
    x = torch.randn(num_tokens, in_features, dtype=torch.bfloat16, device="cuda")
    slots = torch.randint(-1, 4, (num_tokens,)).tolist()
    for segment_size in (16, 64):
        check_against_dense(tables, group, x, slots, segment_size, assert_close)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 300, 5000])
def test_8b_expand_within_the_activation(num_tokens: int, assert_close: Check) -> None:
    group = ProjectionGroup(0, (14336, 14336))
    tables = build_tables([[rank] * 2 for rank in (8, 16, 64, 5)], 4096, group, 8, torch.bfloat16, "cuda")
    x = torch.randn(num_tokens, 4096, dtype=torch.bfloat16, device="cuda")
    gate_up = torch.randn(num_tokens, 28672, dtype=torch.bfloat16, device="cuda")
    segments = segment_tokens(torch.randint(-1, 4, (num_tokens,)).int().cuda(), max_slots=4, segment_size=64)
    inputs = lora_shrink(x, tables, LAYER, group, segments), tables, LAYER, group, segments
    assert_close(lora_expand_silu_mul(*inputs, gate_up), reference.lora_expand_silu_mul(*inputs, gate_up))


@pytest.mark.gpu
def test_a_captured_launch_follows_slots_and_ranks(assert_close: Check) -> None:
    group = ProjectionGroup(0, (512, 128))
    tables = build_tables([[8, 16], [32, 5], [16, 16]], 1024, group, 16, torch.bfloat16, "cuda")
    x = torch.randn(40, 1024, dtype=torch.bfloat16, device="cuda")
    slots = torch.full((40,), -1, dtype=torch.int32, device="cuda")
    out = torch.empty(40, 640, dtype=torch.bfloat16, device="cuda")

    def step() -> None:
        segments = segment_tokens(slots, max_slots=3)
        lora_expand(lora_shrink(x, tables, LAYER, group, segments), tables, LAYER, group, segments, out)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for seed in range(4):
        slots.copy_(torch.randint(-1, 3, (40,), generator=torch.Generator().manual_seed(seed)))
        tables.lora_ranks[1] = 0 if seed == 3 else tables.lora_ranks[1]
        graph.replay()
        expected, segments = torch.empty_like(out), segment_tokens(slots)
        partials = reference.lora_shrink(x, tables, LAYER, group, segments)
        reference.lora_expand(partials, tables, LAYER, group, segments, expected)
        assert_close(out, expected)


@pytest.mark.gpu
def test_offsets_beyond_32_bits(assert_close: Check) -> None:
    group, far = ProjectionGroup(0, (512,)), (1 << 31) + 4096
    tables = build_tables([[16], [8]], 1024, group, 16, torch.bfloat16, "cuda")
    pool = torch.empty(far + tables.pool.numel(), dtype=torch.bfloat16, device="cuda")
    pool[far:] = tables.pool
    moved = replace(tables, pool=pool, a_offsets=tables.a_offsets + far, b_offsets=tables.b_offsets + far)
    x = torch.randn(5, 1024, dtype=torch.bfloat16, device="cuda")
    check_against_dense(moved, group, x, [0, 1, -1, 1, 0], 16, assert_close)
