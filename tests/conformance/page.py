"""docs/compatibility.md, out of the table. `scripts/compatibility.py` writes it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .fields import source_of
from .option import Option, OptionTable, Status
from .table import TABLES

PAGE: Final = Path(__file__).parents[2] / "docs" / "compatibility.md"

_HEAD: Final = """\
# Compatibility

Each option of OpenAI's reference, as its Python client knows it, and of vLLM's additions. `scripts/compatibility.py`
writes this page out of [the conformance suite](../tests/conformance), which proves every row through the official
clients, a gateway and an engine; a test fails while the page is not what the suite says. Answers are asked for whole
and streamed, and both must agree, token for token and in their counts.

| | |
|---|---|
| works | as its reference says; a note tells limits |
| refused | HTTP 400; the error's `message` and `param` name the option. So is every option that is not on this page |
| differs | taken, but not all that the reference says; the note tells what happens |

`null` is always the same as leaving an option out. vLLM's options go into `extra_body` of OpenAI's client.
"""


def render() -> str:
    return "\n".join([_HEAD, *(_section(table) for table in TABLES)])


def _section(table: OptionTable) -> str:
    counts = {status: sum(row.status is status for row in table.rows) for status in Status}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    rows = "\n".join(_row(option) for option in _in_order(table.rows))
    return f"## {table.api}\n\n{told}.\n\n| option | of | | |\n|---|---|---|---|\n{rows}\n"


def _in_order(rows: list[Option]) -> Iterator[Option]:
    """The reference's options before additions, by name."""
    return iter(sorted(rows, key=lambda row: (source_of(row.api, row.name) == "vLLM", row.name)))


def _row(option: Option) -> str:
    note = option.note.replace("|", "\\|")
    return f"| `{option.name}` | {source_of(option.api, option.name)} | {option.status} | {note} |"
