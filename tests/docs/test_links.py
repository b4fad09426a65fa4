"""Every relative link of the documentation leads somewhere."""

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"')
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:|#")


def documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.splitlines()]


def links(text: str) -> list[str]:
    found = (markdown or html for markdown, html in LINK.findall(text))
    return [link for link in found if not EXTERNAL.match(link)]


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    broken = [
        link
        for link in links(document.read_text(encoding="utf-8"))
        if not (document.parent / unquote(link.partition("#")[0])).exists()
    ]
    assert not broken


def test_links_are_found() -> None:
    text = 'See [a](a.md#part) and [b](https://example.com/b) and [c](#here) and <img src="img/d.svg">.'
    assert links(text) == ["a.md#part", "img/d.svg"]


def test_the_main_documents_are_checked() -> None:
    assert {ROOT / "README.md", ROOT / "docs/structure.md", ROOT / "CONTRIBUTING.md"} <= set(documents())
