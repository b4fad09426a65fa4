"""What the documentation names is there: files and modules; and no variable or metric of the gateway is left out."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.docs.test_links import ROOT, documents

GATEWAY: Final = ROOT / "services/gateway/src/descant_gateway"
OPERATIONS: Final = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
TOP: Final = ("packages", "services", "tests", "docs", "scripts", "deploy", "migrations", "demo")
PATH: Final = re.compile(rf"(?<![\w/.-])(?:{'|'.join(TOP)})/[\w./-]*\w")
"""Also in a command; a run's output, `--output NAME`, is not there before it."""
OUTPUT: Final = re.compile(r"--output \S+")
COUNTED: Final = re.compile(r"_total$")


def sources(folder: Path) -> Iterator[str]:
    return (path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_exists(document: Path) -> None:
    text = OUTPUT.sub("", document.read_text(encoding="utf-8"))
    missing = {named for named in PATH.findall(text) if not (ROOT / named).exists()}
    assert not {named for named in missing if not (document.parent / named).exists()}


def test_every_module_that_is_run_exists() -> None:
    texts = [document.read_text(encoding="utf-8") for document in documents()]
    modules = {module for text in texts for module in re.findall(r"-m (descant_[a-z_.]*[a-z_])\b", text)}
    assert len(modules) > 5
    for module in modules:
        parts = Path(*module.split("."))
        assert [path for path in ROOT.glob("*/*/src") if (path / parts).is_dir() or (path / f"{parts}.py").is_file()]


def test_operations_have_every_variable_of_the_gateway() -> None:
    read = {name for source in sources(GATEWAY) for name in re.findall(r'"(DESCANT_[A-Z0-9_]+)"', source)}
    assert len(read) > 20
    endings = re.findall(r"`(_[A-Z_]+)`", OPERATIONS)
    assert {name for name in read if f"`{name}`" not in OPERATIONS and not name.endswith(tuple(endings))} == set()


def test_operations_have_every_metric_of_the_gateway() -> None:
    counted = {name for source in sources(GATEWAY) for name in re.findall(r'"(descant_gateway_[a-z_]+)"', source)}
    named = {COUNTED.sub("", name) for name in re.findall(r"`(descant_gateway_[a-z_]+)`", OPERATIONS)}
    assert len(counted) > 10
    assert counted - named == set()
