"""The gateway installs and runs where torch is not: by what it declares, and by what it imports."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from descant_cli.main import SUBCOMMANDS

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
RUNS_AN_ENGINE = "descant_cli.run_batch"
"""Of descant-cli[engine]: it may import what the rest must do without."""

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
        if not module.name.endswith("__main__") and not module.name.startswith({extra!r}):
            importlib.import_module(module.name)
            count += 1
print(count)
"""


def declared(distribution: str, extra: str = "") -> set[str]:
    """Everything that an installation of `distribution`, with at most one extra, brings along."""
    found: set[str] = set()
    pending = [canonicalize_name(distribution)]
    while pending:
        for text in metadata.requires(pending.pop()) or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            if wanted and name not in found:
                found.add(name)
                pending.append(name)
    return found


@pytest.mark.parametrize("distribution", ["descant-gateway", "descant-cli", "descant-wire"])
def test_nothing_heavy_is_declared(distribution: str) -> None:
    assert declared(distribution) & HEAVY == set()


def test_engine_server_does_declare_torch() -> None:
    assert declared("descant-server") >= {"torch", "descant-engine", "descant-kernels"}


def import_everything(packages: list[str], forbidden: set[str], extra: str) -> subprocess.CompletedProcess[str]:
    code = IMPORT_EVERYTHING.format(forbidden=forbidden, packages=packages, extra=extra)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_every_module_of_gateway_and_cli_imports_without_torch() -> None:
    forbidden = {name.replace("-", "_") for name in HEAVY}
    result = import_everything(["descant_wire", "descant_gateway", "descant_cli"], forbidden, RUNS_AN_ENGINE)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 40


def test_a_command_that_runs_an_engine_says_what_to_install() -> None:
    result = import_everything([RUNS_AN_ENGINE], {"descant_engine"}, "nothing")
    assert "descant_engine is not installed here" in result.stderr
    modules = {target.target.partition(":")[0]: target.distribution for target in SUBCOMMANDS.values()}
    assert modules[f"{RUNS_AN_ENGINE}.command"] == "descant-cli[engine]"
    assert "descant-server" in declared("descant-cli", extra="engine")


def test_import_hook_does_forbid() -> None:
    result = import_everything(["descant_engine"], {"torch"}, "nothing")
    assert result.returncode != 0
    assert "torch is not installed here" in result.stderr
