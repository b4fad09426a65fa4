"""docs/security.md names tests that exist, and forgets none of the holes that others had."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs/security.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", TABLE)
HOLES = [
    "CVE-2024-2952",
    "CVE-2024-5751",
    "CVE-2024-6587",
    "CVE-2025-0628",
    "CVE-2026-12772",
    "CVE-2026-12773",
    "CVE-2026-12795",
    "CVE-2026-12796",
    "CVE-2026-12797",
    "CVE-2026-12799",
    "CVE-2026-30623",
    "CVE-2026-30886",
    "CVE-2026-35029",
    "CVE-2026-35030",
    "CVE-2026-37004",
    "CVE-2026-40217",
    "CVE-2026-42208",
    "CVE-2026-42271",
    "CVE-2026-47101",
    "CVE-2026-47102",
    "CVE-2026-48710",
    "CVE-2026-49468",
    "CVE-2026-105756",
    "GHSA-69x8-hrgq-fjj8",
    "PYSEC-2026-4069",
    "PYSEC-2026-4070",
]
FUNCTIONS = {"eval", "exec", "compile", "__import__"}
METHODS = {"import_module", "system", "popen"}
MODULES_FOR_IT = {"pickle", "marshal", "subprocess", "jinja2", "yaml", "code", "runpy"}


@pytest.mark.parametrize("hole", HOLES)
def test_every_known_hole_has_its_row(hole: str) -> None:
    assert hole in TABLE


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_every_test_that_is_named_exists(path: str, name: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"\bdef {name}\(", source) if name else "def test_" in source


def test_every_row_names_a_test() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 20
    assert [row for row in rows if "tests/" not in row.rsplit("|", 2)[1]] == []


@pytest.mark.parametrize("source", sorted((ROOT / "services/gateway/src").rglob("*.py")), ids=lambda path: path.stem)
def test_no_data_of_the_gateway_is_run(source: Path) -> None:
    """No eval, no templates, no plugins, no programs: nothing that arrives can become code."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FUNCTIONS, f"{source}:{node.lineno}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in METHODS, f"{source}:{node.lineno}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            assert not MODULES_FOR_IT & {name.partition(".")[0] for name in names}, f"{source}:{node.lineno}"


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#") and "==" not in line] == []
