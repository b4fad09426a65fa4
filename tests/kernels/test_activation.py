from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from descant_kernels import reference, silu_mul

Check = Callable[[Tensor, Tensor], None]


@pytest.mark.parametrize("shape", [(1, 2), (4, 96), (3, 3000), (0, 64)])
def test_silu_mul(device: str, dtype: torch.dtype, shape: tuple[int, int], assert_close: Check) -> None:
    gate_up = torch.randn(shape, dtype=dtype, device=device) * 4
    assert_close(silu_mul(gate_up), reference.silu_mul(gate_up))


def test_rows_may_be_strided(device: str, dtype: torch.dtype, assert_close: Check) -> None:
    gate_up = torch.randn(5, 80, dtype=dtype, device=device)[:, 8:72]
    assert_close(silu_mul(gate_up), reference.silu_mul(gate_up))


def test_refuses_an_odd_width(device: str) -> None:
    with pytest.raises(ValueError, match="even width"):
        silu_mul(torch.randn(2, 7, device=device))


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 256, 8192])
def test_8b_shapes(num_tokens: int, assert_close: Check) -> None:
    gate_up = torch.randn(num_tokens, 2 * 14336, dtype=torch.bfloat16, device="cuda")
    assert_close(silu_mul(gate_up), reference.silu_mul(gate_up))


def test_adds_up_partial_sums(device: str, dtype: torch.dtype, assert_close: Check) -> None:
    gate_up = torch.randn(3, 5, 80, dtype=dtype, device=device)
    assert_close(silu_mul(gate_up), reference.silu_mul(gate_up))
