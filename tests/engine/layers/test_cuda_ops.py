"""The GPU's operations in a whole model, without a GPU: kernels under Triton's interpreter, against the CPU's."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FAMILIES = ("llama", "qwen3")


@pytest.fixture(scope="module")
def differences(random_model: Callable[..., Path]) -> dict[str, list[float]]:
    """What `cuda_ops_interpreted.py` prints of each family."""
    shape = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4}
    paths = [random_model(family, **shape) for family in FAMILIES]
    script = Path(__file__).with_name("cuda_ops_interpreted.py")
    finished = subprocess.run(
        [sys.executable, script, *paths],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    return {family: [float(word) for word in line.split()] for family, line in zip(FAMILIES, lines, strict=True)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_the_same_with_the_gpus_operations(differences: dict[str, list[float]], family: str) -> None:
    named = dict(zip(("one by one", "captured", "deterministic"), differences[family], strict=True))
    assert all(difference < 1e-5 for difference in named.values()), named
