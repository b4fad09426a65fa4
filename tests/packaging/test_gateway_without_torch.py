"""The gateway installs and runs where torch is not: by what it declares, and by what it imports."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
HEAVY = {
    "torch",
    "triton",
    "transformers",
    "safetensors",
    "peft",
    "descant-engine",
    "descant-kernels",
    "descant-server",
}

IMPORT_EVERYTHING = """
import importlib, importlib.abc, pkgutil, sys

class Forbidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {forbidden!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Forbidden())
count = 0
for package in {packages!r}:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
print(count)
"""


def declared(distribution: str) -> set[str]:
    """Everything that an installation of `distribution`, without extras, brings along."""
    found: set[str] = set()
    pending = [canonicalize_name(distribution)]
    while pending:
        for text in metadata.requires(pending.pop()) or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and name not in found:
                found.add(name)
                pending.append(name)
    return found


@pytest.mark.parametrize("distribution", ["descant-gateway", "descant-cli", "descant-wire"])
def test_nothing_heavy_is_declared(distribution: str) -> None:
    assert declared(distribution) & HEAVY == set()


def test_engine_server_does_declare_torch() -> None:
    assert declared("descant-server") >= {"torch", "descant-engine", "descant-kernels"}


def test_every_module_of_gateway_and_cli_imports_without_torch() -> None:
    forbidden = {name.replace("-", "_") for name in HEAVY}
    code = IMPORT_EVERYTHING.format(forbidden=forbidden, packages=["descant_wire", "descant_gateway", "descant_cli"])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 40


def test_import_hook_does_forbid() -> None:
    code = IMPORT_EVERYTHING.format(forbidden={"torch"}, packages=["descant_engine"])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "torch is not installed here" in result.stderr
