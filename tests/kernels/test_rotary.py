from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from descant_kernels import reference, rotary, rotary_kv_write

Check = Callable[[Tensor, Tensor], None]


def cos_sin(max_position: int, dim: int, device: str) -> Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, device=device) / dim)
    angles = torch.arange(max_position, device=device)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)


@pytest.mark.parametrize(("q_heads", "k_heads"), [(1, 1), (6, 2), (9, 3)])
@pytest.mark.parametrize("dim", [16, 80, 96])
def test_rotates_slices_of_a_packed_tensor(
    device: str, dtype: torch.dtype, q_heads: int, k_heads: int, dim: int, assert_close: Check
) -> None:
    num_tokens = 5
    packed = torch.randn(num_tokens, (q_heads + 2 * k_heads) * dim, dtype=dtype, device=device)
    untouched = packed.clone()
    positions = torch.tensor([0, 3, 3, 99, 50], device=device)
    expected = untouched.clone()
    for function, tensor in ((rotary, packed), (reference.rotary, expected)):
        q, k, _ = tensor.view(num_tokens, -1, dim).split((q_heads, k_heads, k_heads), dim=1)
        function(q, k, positions, cos_sin(100, dim, device))
    assert_close(packed, expected)
    assert torch.equal(packed[:, (q_heads + k_heads) * dim :], untouched[:, (q_heads + k_heads) * dim :])


def test_rotary_and_kv_write_in_one_launch(device: str, dtype: torch.dtype, assert_close: Check) -> None:
    num_tokens, dim = 5, 80
    packed = torch.randn(num_tokens, 10, dim, dtype=dtype, device=device)
    positions = torch.tensor([0, 3, 3, 99, 50], device=device)
    slots = torch.tensor([7, -1, 0, 12, 3], device=device)
    results = []
    for function in (rotary_kv_write, reference.rotary_kv_write):
        qkv, pool = packed.clone(), packed.new_zeros(4, 3, 2, 4, 2, dim)
        caches = pool[:, 1, 0], pool[:, 1, 1]
        function(*qkv.split((6, 2, 2), dim=1), positions, cos_sin(100, dim, device), *caches, slots)
        results.append((qkv, pool))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)
    assert torch.equal(results[0][1] == 0, results[1][1] == 0)


def test_rotary_and_kv_write_add_up_partial_sums(device: str, dtype: torch.dtype, assert_close: Check) -> None:
    num_tokens, dim = 5, 80
    packed = torch.randn(2, num_tokens, 10, dim, dtype=dtype, device=device)
    positions = torch.tensor([0, 3, 3, 99, 50], device=device)
    slots = torch.tensor([7, -1, 0, 12, 3], device=device)
    results = []
    for function in (rotary_kv_write, reference.rotary_kv_write):
        qkv = packed.float() if function is reference.rotary_kv_write else packed.clone()
        pool = qkv.new_zeros(4, 3, 2, 4, 2, dim)
        caches = pool[:, 1, 0], pool[:, 1, 1]
        function(*qkv.split((6, 2, 2), dim=2), positions, cos_sin(100, dim, device), *caches, slots)
        results.append((qkv[0, :, :6].to(dtype), pool.to(dtype)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


def test_equals_transformers_llama(device: str, assert_close: Check) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    q, k = torch.randn(4, 3, 32, device=device), torch.randn(4, 1, 32, device=device)
    cache = cos_sin(64, 32, device)
    positions = torch.tensor([5, 6, 63, 0], device=device)
    cos, sin = (torch.cat((half, half), dim=-1)[None] for half in cache[positions].chunk(2, dim=-1))
    expected = llama.apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    rotary(q, k, positions, cache)
    assert_close(q, expected[0][0].transpose(0, 1))
    assert_close(k, expected[1][0].transpose(0, 1))


def test_no_tokens(device: str) -> None:
    heads = torch.randn(0, 2, 16, device=device)
    rotary(heads, heads.clone(), torch.zeros(0, dtype=torch.int64, device=device), cos_sin(4, 16, device))


def test_refuses_a_cache_of_another_width(device: str) -> None:
    heads = torch.randn(1, 2, 16, device=device)
    with pytest.raises(ValueError, match="head_dim"):
        rotary(heads, heads, torch.zeros(1, dtype=torch.int64, device=device), cos_sin(4, 32, device))
