from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from descant_kernels import add_rms_norm, reference, rms_norm

Check = Callable[[Tensor, Tensor], None]
EPS = 1e-5


@pytest.mark.parametrize("shape", [(1, 16), (5, 96), (3, 2500), (0, 64)])
def test_rms_norm(device: str, dtype: torch.dtype, shape: tuple[int, int], assert_close: Check) -> None:
    x = torch.randn(shape, dtype=dtype, device=device) * 3
    weight = torch.randn(shape[1], dtype=dtype, device=device)
    kept = x.clone()
    assert_close(rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize("dim", [16, 80])
def test_rms_norm_of_heads_in_a_packed_tensor(
    device: str, dtype: torch.dtype, heads: int, dim: int, assert_close: Check
) -> None:
    packed = torch.randn(7, (heads + 3) * dim, dtype=dtype, device=device)
    x = packed[:, dim : (heads + 1) * dim].view(7, heads, dim)
    weight = torch.randn(dim, dtype=dtype, device=device)
    assert_close(rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))


@pytest.mark.parametrize("shape", [(1, 16), (5, 96), (3, 2500), (0, 64)])
def test_add_rms_norm_updates_the_residual_in_place(
    device: str, dtype: torch.dtype, shape: tuple[int, int], assert_close: Check
) -> None:
    x = torch.randn(shape, dtype=dtype, device=device)
    buffer = torch.full((shape[0], 2 * shape[1]), float("nan"), dtype=dtype, device=device)
    residual = buffer[:, : shape[1]].copy_(torch.randn(shape, device=device))
    weight = torch.randn(shape[1], dtype=dtype, device=device)
    expected, expected_residual = reference.add_rms_norm(x, residual.clone(), weight, EPS)
    normed, returned = add_rms_norm(x, residual, weight, EPS)
    assert returned is residual
    assert_close(residual, expected_residual)  # the interpreter rounds bfloat16 towards zero
    assert buffer[:, shape[1] :].isnan().all()
    assert_close(normed, expected)


@pytest.mark.parametrize("splits", [1, 3])
def test_add_rms_norm_adds_up_partial_sums(device: str, dtype: torch.dtype, splits: int, assert_close: Check) -> None:
    partials = torch.randn(splits, 5, 96, device=device)
    residual, weight = torch.randn(5, 96, dtype=dtype, device=device), torch.randn(96, dtype=dtype, device=device)
    expected = reference.add_rms_norm(partials, residual.clone(), weight, EPS)
    for actual, wanted in zip(add_rms_norm(partials, residual, weight, EPS), expected, strict=True):
        assert_close(actual, wanted)


def test_head_norms_add_up_partial_sums(device: str, dtype: torch.dtype, assert_close: Check) -> None:
    packed = torch.randn(2, 7, 5, 80, dtype=dtype, device=device)
    weight = torch.randn(80, dtype=dtype, device=device)
    for heads in packed.split((3, 2), dim=2):
        assert_close(rms_norm(heads, weight, EPS), reference.rms_norm(heads, weight, EPS))


def test_refuses_rows_that_are_not_contiguous(device: str) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        rms_norm(torch.randn(4, 8, device=device).T, torch.randn(4, device=device), EPS)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 256, 8192])
def test_8b_shapes(num_tokens: int, assert_close: Check) -> None:
    x, residual = torch.randn(2, num_tokens, 4096, dtype=torch.bfloat16, device="cuda")
    weight = torch.randn(4096, dtype=torch.bfloat16, device="cuda")
    assert_close(rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
    expected = reference.add_rms_norm(x, residual.clone(), weight, EPS)
    for actual, wanted in zip(add_rms_norm(x, residual, weight, EPS), expected, strict=True):
        assert_close(actual, wanted)
