"""The GPU's operations in a whole model, without a GPU: kernels under Triton's interpreter, against the CPU's."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_computes_the_same_with_the_gpus_operations(random_model: Callable[..., Path], family: str) -> None:
    path = random_model(family, num_hidden_layers=1, hidden_size=64, num_attention_heads=4)
    script = Path(__file__).with_name("cuda_ops_interpreted.py")
    finished = subprocess.run(
        [sys.executable, script, path],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    differences = dict(zip(("one by one", "captured", "deterministic"), finished.stdout.split(), strict=True))
    assert all(float(difference) < 1e-5 for difference in differences.values()), differences
