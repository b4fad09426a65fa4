import pytest
import torch
from torch import Tensor

from descant_kernels import kv_write, reference


def pool_views(
    num_blocks: int, layers: int, block_size: int, heads: int, dim: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """K and V of the middle layer in a block-major pool full of NaN."""
    pool = like.new_full((num_blocks, layers, 2, block_size, heads, dim), float("nan"))
    return pool[:, layers // 2, 0], pool[:, layers // 2, 1]


def same(actual: Tensor, expected: Tensor) -> bool:
    return torch.equal(actual.nan_to_num(12345.0), expected.nan_to_num(12345.0))


@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("dim", [16, 80])
@pytest.mark.parametrize("block_size", [8, 16])
def test_scatters_into_strided_views_and_nowhere_else(
    device: str, dtype: torch.dtype, heads: int, dim: int, block_size: int
) -> None:
    num_blocks, num_tokens = 5, 11
    qkv = torch.randn(num_tokens, 4 * heads * dim, dtype=dtype, device=device)
    keys = qkv[:, 2 * heads * dim : 3 * heads * dim].view(num_tokens, heads, dim)
    values = qkv[:, 3 * heads * dim :].view(num_tokens, heads, dim)
    if heads == 3:
        keys = keys.contiguous()  # as after a norm of the keys
    slots = torch.randperm(num_blocks * block_size, device=device)[:num_tokens]
    slots[[2, 7]] = -1
    actual = pool_views(num_blocks, 3, block_size, heads, dim, keys)
    expected = pool_views(num_blocks, 3, block_size, heads, dim, keys)
    kv_write(keys, values, *actual, slots)
    reference.kv_write(keys, values, *expected, slots)
    assert same(actual[0]._base, expected[0]._base)
    assert actual[0].isfinite().any(-1).sum() == (num_tokens - 2) * heads


def test_no_tokens(device: str) -> None:
    keys = torch.randn(0, 2, 16, device=device)
    caches = pool_views(2, 1, 8, 2, 16, keys)
    kv_write(keys, keys, *caches, torch.zeros(0, dtype=torch.int64, device=device))
    assert caches[0].isnan().all()


def test_refuses_caches_of_different_layout(device: str) -> None:
    keys = torch.randn(1, 2, 16, device=device)
    with pytest.raises(ValueError, match="equal strides"):
        kv_write(keys, keys, torch.zeros(2, 8, 2, 16), torch.zeros(2, 8, 4, 16)[:, :, :2], torch.zeros(1).long())


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    stride_block = 1 << 24
    pool = torch.zeros(stride_block * 140, dtype=torch.bfloat16, device="cuda")
    shape, strides = (140, 16, 8, 128), (stride_block, 1024, 128, 1)
    caches = pool.as_strided(shape, strides), pool.as_strided(shape, strides, 16 * 1024)
    keys = torch.randn(3, 8, 128, dtype=torch.bfloat16, device="cuda")
    slots = torch.tensor([139 * 16 + 15, 130 * 16, 128 * 16 + 3], device="cuda")
    kv_write(keys, -keys, *caches, slots)
    assert torch.equal(caches[0][slots // 16, slots % 16], keys)
    assert torch.equal(caches[1][slots // 16, slots % 16], -keys)
    assert pool.count_nonzero() == 2 * keys.count_nonzero()
