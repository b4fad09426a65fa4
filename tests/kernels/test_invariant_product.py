from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from descant_kernels import invariant_product, reference
from descant_kernels.tuning import INVARIANT_BLOCK_IN

Check = Callable[[Tensor, Tensor], None]


@pytest.mark.parametrize(("num_tokens", "in_features", "out_features"), [(1, 32, 16), (70, 200, 130), (0, 64, 64)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_equals_the_reference(
    device: str,
    dot_dtype: torch.dtype,
    num_tokens: int,
    in_features: int,
    out_features: int,
    has_bias: bool,
    assert_close: Check,
) -> None:
    x = torch.randn(num_tokens, in_features + 8, dtype=dot_dtype, device=device)[:, :in_features]
    weight = torch.randn(out_features, in_features, dtype=dot_dtype, device=device)
    bias = torch.randn(out_features, dtype=dot_dtype, device=device) if has_bias else None
    out = torch.full((num_tokens, out_features), float("nan"), dtype=dot_dtype, device=device)
    assert_close(invariant_product(x, weight, bias), reference.invariant_product(x, weight, bias))
    assert invariant_product(x, weight, bias, out=out) is out
    assert_close(out, reference.invariant_product(x, weight, bias))


def exact_within_tiles(num_rows: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """Small whole numbers times another power of two for every tile of input features: sums over one tile have no
    rounding, in whatever order the interpreter's library adds; sums over several tiles have, by their order.
    """
    exponents = torch.tensor([-10.0, 8.0, 0.0])[torch.arange(in_features) // INVARIANT_BLOCK_IN % 3]
    return (torch.randint(-8, 9, (num_rows, in_features)) * exponents.exp2()).to(dtype)


def test_a_row_gets_the_same_bits_in_any_batch(device: str, dot_dtype: torch.dtype) -> None:
    x = exact_within_tiles(150, 300, dot_dtype).to(device)
    weight = (torch.randint(-8, 9, (80, 300)) / 8).to(device, dot_dtype)
    if device == "cuda":
        x, weight = torch.randn_like(x), torch.randn_like(weight)
    together = invariant_product(x, weight)
    for first, last in ((0, 1), (37, 38), (10, 90), (149, 150)):
        assert torch.equal(invariant_product(x[first:last].contiguous(), weight), together[first:last])


def test_refuses_a_weight_of_another_width(device: str) -> None:
    with pytest.raises(ValueError, match="no product"):
        invariant_product(torch.randn(2, 8, device=device), torch.randn(4, 16, device=device))


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 64, 1000])
@pytest.mark.parametrize(("in_features", "out_features"), [(4096, 6144), (14336, 4096), (4096, 28672)])
def test_8b_shapes(num_tokens: int, in_features: int, out_features: int, assert_close: Check) -> None:
    x = torch.randn(num_tokens, in_features, dtype=torch.bfloat16, device="cuda")
    weight = torch.randn(out_features, in_features, dtype=torch.bfloat16, device="cuda") * 0.02
    assert_close(invariant_product(x, weight), reference.invariant_product(x, weight))
    some = slice(num_tokens // 3, num_tokens // 3 + 1)
    assert torch.equal(invariant_product(x[some], weight), invariant_product(x, weight)[some])
