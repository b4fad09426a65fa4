from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from descant_kernels import invariant_attention, paged_attention, reference

Check = Callable[[Tensor, Tensor], None]
UNDEFINED_BLOCK = 1 << 29
"""Fills block tables past a sequence's end: following it would leave the pool."""


@dataclass(frozen=True)
class Batch:
    q: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    scale: float
    max_query_len: int
    max_seq_len: int

    def run(self, function: Callable[..., Tensor]) -> Tensor:
        return function(*(getattr(self, name) for name in self.__dataclass_fields__))


def build_batch(
    lengths: list[tuple[int, int]],
    *,
    heads: tuple[int, int] = (4, 2),
    dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Batch:
    """lengths: (query_len, seq_len) by request. Strided q and caches; whatever holds no token is NaN."""
    q_heads, kv_heads = heads
    num_blocks = [-(-seq_len // block_size) for _, seq_len in lengths]
    total = sum(num_blocks)
    pool = torch.full((total + 1, 2, 2, block_size, kv_heads, dim), float("nan"), dtype=dtype, device=device)
    free = torch.randperm(total + 1).tolist()
    block_tables = torch.full((len(lengths), max(num_blocks) + 2), UNDEFINED_BLOCK, dtype=torch.int32)
    for request, (_, seq_len) in enumerate(lengths):
        for index in range(num_blocks[request]):
            block = free.pop()
            block_tables[request, index] = block
            filled = min(block_size, seq_len - index * block_size)
            pool[block, 1, :, :filled] = torch.randn(2, filled, kv_heads, dim, device=device).to(dtype)
    query_lens = [query_len for query_len, _ in lengths]
    packed = torch.randn(sum(query_lens), q_heads + 2 * kv_heads, dim, device=device).to(dtype)
    starts = torch.tensor([0, *query_lens], dtype=torch.int32).cumsum(0).int()
    return Batch(
        q=packed[:, :q_heads],
        key_cache=pool[:, 1, 0],
        value_cache=pool[:, 1, 1],
        block_tables=block_tables.to(device),
        query_start_loc=starts.to(device),
        seq_lens=torch.tensor([seq_len for _, seq_len in lengths], dtype=torch.int32, device=device),
        scale=dim**-0.5,
        max_query_len=max(query_lens),
        max_seq_len=max(seq_len for _, seq_len in lengths),
    )


LENGTHS = {
    "decode": [(1, 1), (1, 5), (1, 16), (1, 17), (1, 90)],
    "one long decode": [(1, 200)],
    "prefill": [(5, 5), (16, 16), (37, 37)],
    "chunk after context": [(7, 40), (3, 64)],
    "mixed": [(1, 33), (9, 9), (1, 70), (2, 50), (20, 43)],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_batches(device: str, dot_dtype: torch.dtype, lengths: list[tuple[int, int]], assert_close: Check) -> None:
    batch = build_batch(lengths, dtype=dot_dtype, device=device)
    assert_close(batch.run(paged_attention), batch.run(reference.paged_attention))


@pytest.mark.parametrize("group_size", range(1, 9))
def test_group_sizes(device: str, group_size: int, assert_close: Check) -> None:
    batch = build_batch([(1, 30), (11, 25)], heads=(2 * group_size, 2), device=device)
    assert_close(batch.run(paged_attention), batch.run(reference.paged_attention))


@pytest.mark.parametrize("dim", [16, 32, 64, 80, 96, 128, 256])
def test_head_dims(device: str, dot_dtype: torch.dtype, dim: int, assert_close: Check) -> None:
    batch = build_batch([(1, 40), (6, 20)], heads=(2, 1), dim=dim, dtype=dot_dtype, device=device)
    assert_close(batch.run(paged_attention), batch.run(reference.paged_attention))


@pytest.mark.parametrize("block_size", [8, 16, 32])
def test_block_sizes(device: str, block_size: int, assert_close: Check) -> None:
    batch = build_batch([(1, 45), (13, 50), (4, 4)], block_size=block_size, device=device)
    assert_close(batch.run(paged_attention), batch.run(reference.paged_attention))


@pytest.mark.parametrize("seed", range(8))
def test_random_batches(device: str, seed: int, assert_close: Check) -> None:
    torch.manual_seed(seed)
    query_lens = torch.randint(1, 20, (3,)).tolist()
    lengths = [(query_len, query_len + int(torch.randint(0, 60, (1,)))) for query_len in query_lens]
    batch = build_batch(lengths, device=device, block_size=8)
    assert_close(batch.run(paged_attention), batch.run(reference.paged_attention))


def test_large_scores_do_not_overflow(device: str, assert_close: Check) -> None:
    batch = build_batch([(1, 60), (5, 30)], device=device)
    batch.q.mul_(200)
    assert_close(batch.run(paged_attention), batch.run(reference.paged_attention))


def test_requests_without_queries_are_skipped_and_empty_ones_give_zeros(device: str, assert_close: Check) -> None:
    """What a batch padded for a CUDA graph looks like."""
    batch = build_batch([(1, 20), (0, 9), (1, 0), (0, 0)], device=device)
    for max_seq_len in (20, 2000):
        out = replace(batch, max_seq_len=max_seq_len).run(paged_attention)
        assert_close(out, batch.run(reference.paged_attention))
        assert not out[1].any()


def test_the_bounds_may_be_larger_than_the_batch(device: str, assert_close: Check) -> None:
    batch = build_batch([(1, 20), (1, 3)], device=device)
    bounded = replace(batch, max_query_len=7, max_seq_len=1 << 17)
    assert_close(bounded.run(paged_attention), batch.run(reference.paged_attention))


def test_two_runs_give_the_same_bits(device: str) -> None:
    batch = build_batch([(1, 150), (8, 30)], device=device)
    assert torch.equal(batch.run(paged_attention), batch.run(paged_attention))


def attend_invariantly(*arguments: Tensor | float) -> Tensor:
    return invariant_attention(*arguments[:-2])  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_invariant_attention(
    device: str, dot_dtype: torch.dtype, lengths: list[tuple[int, int]], assert_close: Check
) -> None:
    batch = build_batch(lengths, dtype=dot_dtype, device=device)
    assert_close(batch.run(attend_invariantly), batch.run(reference.paged_attention))


def test_invariant_attention_gives_a_token_the_same_bits_in_any_chunk_and_batch(device: str) -> None:
    batch = build_batch([(40, 90), (1, 30), (5, 70)], device=device)
    together = batch.run(attend_invariantly)
    for first, last in ((39, 40), (8, 19)):  # of the first request's queries
        alone = replace(
            batch,
            q=batch.q[first:last],
            query_start_loc=torch.tensor([0, last - first], dtype=torch.int32, device=device),
            seq_lens=torch.tensor([50 + last], dtype=torch.int32, device=device),
        )
        assert torch.equal(alone.run(attend_invariantly), together[first:last])


def test_refuses_heads_that_do_not_divide(device: str) -> None:
    with pytest.raises(ValueError, match="cannot share"):
        build_batch([(1, 3)], heads=(3, 2), device=device).run(paged_attention)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "lengths",
    [[(1, 512)] * 64, [(1, 20000), (1, 3)], [(2048, 2048)], [(700, 3000), (1, 900), (33, 33)]],
    ids=["decode", "long decode", "prefill", "mixed"],
)
def test_8b_shapes(lengths: list[tuple[int, int]], dtype: torch.dtype, assert_close: Check) -> None:
    batch = build_batch(lengths, heads=(32, 8), dim=128, dtype=dtype, device="cuda")
    assert_close(batch.run(paged_attention), batch.run(reference.paged_attention))


@pytest.mark.gpu
def test_a_captured_launch_follows_the_lengths(assert_close: Check) -> None:
    batch = build_batch([(1, 300), (1, 700), (1, 64)], heads=(32, 8), dim=128, dtype=torch.bfloat16, device="cuda")
    batch.run(paged_attention)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = batch.run(paged_attention)
    for lengths in ([300, 700, 64], [1, 650, 33], [257, 0, 16]):
        batch.seq_lens.copy_(torch.tensor(lengths))
        graph.replay()
        assert_close(out, batch.run(reference.paged_attention))


@pytest.mark.gpu
def test_offsets_beyond_32_bits(assert_close: Check) -> None:
    batch = build_batch([(1, 300), (40, 90)], heads=(32, 8), dim=128, dtype=torch.bfloat16, device="cuda")
    shape, stride_block = batch.key_cache.shape, 1 << 27
    pool = torch.empty(stride_block * shape[0], dtype=torch.bfloat16, device="cuda")
    caches = [pool.as_strided(shape, (stride_block, 1024, 128, 1), offset) for offset in (0, 1 << 20)]
    caches[0].copy_(batch.key_cache)
    caches[1].copy_(batch.value_cache)
    far = replace(batch, key_cache=caches[0], value_cache=caches[1])
    assert_close(far.run(paged_attention), batch.run(reference.paged_attention))
