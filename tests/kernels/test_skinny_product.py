from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from descant_kernels import can_multiply, reference, skinny_product

Check = Callable[[Tensor, Tensor], None]
HALF_TYPES = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("num_tokens", [1, 3, 16, 17, 33, 64])
@pytest.mark.parametrize("splits", [1, 2])
def test_equals_the_reference(
    device: str, dtype: torch.dtype, num_tokens: int, splits: int, assert_close: Check
) -> None:
    x = torch.randn(num_tokens, 2 * 512, dtype=dtype, device=device)[:, 256:768]
    weight = torch.randn(192, 512, dtype=dtype, device=device)
    actual = skinny_product(x, weight, splits)
    expected = reference.skinny_product(x, weight, splits)
    assert actual.dtype == expected.dtype
    assert_close(actual.to(dtype), expected.to(dtype))


def test_says_which_shapes_it_takes() -> None:
    weight = torch.empty(128, 512, dtype=torch.bfloat16)
    assert can_multiply(64, weight, splits=2)
    assert not can_multiply(65, weight, splits=2)
    assert not can_multiply(0, weight, splits=2)
    assert not can_multiply(1, weight, splits=3)
    assert not can_multiply(1, weight[:100], splits=1)
    assert not can_multiply(1, weight.float(), splits=1)


def test_refuses_the_others(device: str) -> None:
    with pytest.raises(ValueError, match="no skinny product for x \\(65, 512\\)"):
        skinny_product(torch.zeros(65, 512, device=device), torch.zeros(64, 512, device=device), 1)


@pytest.mark.gpu
@pytest.mark.parametrize(("out_features", "in_features"), [(4096, 14336), (4096, 4096), (6144, 4096)])
@pytest.mark.parametrize("num_tokens", [8, 24, 64])
def test_8b_shapes(out_features: int, in_features: int, num_tokens: int, assert_close: Check) -> None:
    x = torch.randn(num_tokens, in_features, dtype=torch.bfloat16, device="cuda")
    weight = torch.randn(out_features, in_features, dtype=torch.bfloat16, device="cuda")
    product = skinny_product(x, weight, 2).sum(0)
    assert_close(product.bfloat16(), (x.double() @ weight.double().T).bfloat16())
