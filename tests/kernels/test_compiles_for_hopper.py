import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_MEMORY = 227 * 1024
"""Bytes that a program can have on Hopper."""

FEW_BYTES = ("best_of_row_kernel", "_cut_segments_kernel", "_decode_inputs_kernel", "_place_tokens_kernel")


@pytest.mark.slow
@pytest.mark.timeout(250)
def test_every_kernel_compiles_with_wide_accesses(tmp_path: Path) -> None:
    """The interpreter takes what the compiler refuses: types that change in a loop, odd shapes, small products."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).with_name("compile_for_hopper.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    border = lines.index("again")
    kernels, compiled_again = lines[:border], lines[border + 1 :]
    assert {kernel["name"] for kernel in kernels} == {
        "_add_rms_norm_kernel",
        "best_of_row_kernel",
        "_best_of_tile_kernel",
        "_cut_segments_kernel",
        "_decode_inputs_kernel",
        "_decode_kernel",
        "_expand_kernel",
        "_expand_silu_mul_kernel",
        "_invariant_product_kernel",
        "_join_splits_kernel",
        "_kv_write_kernel",
        "_largest_of_tile_kernel",
        "_place_tokens_kernel",
        "_prefill_kernel",
        "_rms_norm_kernel",
        "_rotary_kernel",
        "_rotary_kv_write_kernel",
        "_shrink_kernel",
        "_silu_mul_kernel",
        "_skinny_product_kernel",
        "_truncate_kernel",
    }
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY, kernel
        # Element-wise loads would take several times as long; alignment hints are easily lost.
        assert kernel["wide"] > 0 or kernel["name"] in FEW_BYTES, kernel
    # Decode's number of splits is a power of two that follows from the number of requests: few variants, cached.
    names = {kernel["name"] for kernel in compiled_again}
    assert names <= {"_decode_kernel", "_join_splits_kernel"}, "a step of another length must not wait for the compiler"
