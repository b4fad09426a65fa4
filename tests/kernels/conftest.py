"""The same tests run compiled on a GPU and, without one, under Triton's interpreter on the CPU."""

import os
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    # Triton chooses between compiler and interpreter when it is imported. If a test of another folder was first, it
    # gets imported once more here; what the others hold stays as it was (the engine never runs Triton on the CPU).
    os.environ["TRITON_INTERPRET"] = "1"
    for name in list(sys.modules):
        if name.split(".")[0] in ("triton", "descant_kernels") and not name.startswith("triton._C"):
            del sys.modules[name]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCES = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative Frobenius error: a few roundings of the output dtype."""


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if HAS_GPU else "cpu"


@pytest.fixture(params=DTYPES.keys())
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture(params=["fp32", "fp16", "bf16"] if HAS_GPU else ["fp32", "fp16"])
def dot_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """For kernels with matrix products: the interpreter's tl.dot is wrong in bfloat16."""
    return DTYPES[request.param]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assert_close() -> Callable[[Tensor, Tensor], None]:
    """Same shape and dtype, all finite, relative Frobenius error within the dtype's tolerance."""

    def check(actual: Tensor, expected: Tensor) -> None:
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        assert actual.isfinite().all(), "some element was not written, or read what it should not"
        error = (actual.double() - expected.double()).norm()
        assert error <= TOLERANCES[actual.dtype] * expected.double().norm(), (
            f"relative error {error / expected.double().norm():.2e}"
        )

    return check
