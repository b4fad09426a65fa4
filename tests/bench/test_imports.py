"""What measures the engine itself runs on a machine that has torch, transformers and safetensors, and little else."""

import subprocess
import sys

MEASUREMENTS = (
    "throughput",
    "adapter_loads",
    "cold_adapters",
    "profile_steps",
    "regression",
    "residents",
    "compare",
    "curve",
    "latency",
    "startup",
)
ABSENT = ("msgspec", "click", "litestar", "matplotlib", "aiohttp", "httpx", "rich", "xgrammar", "llguidance")
CODE = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {MEASUREMENTS!r}:
    importlib.import_module(f"descant_bench.{{name}}")
"""


def test_measurements_need_only_torch_transformers_and_safetensors() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
