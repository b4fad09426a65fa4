"""What the commands print: plain tables for people and pipes, JSON for programs."""

import json
from collections.abc import Iterable, Sequence
from typing import Final

import click

from descant_cli.admin.client import Fields

ABSENT: Final = "-"

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show_rows(rows: Iterable[Fields], columns: Sequence[str], *, as_json: bool) -> None:
    """A table of these columns, or all fields of each row as one JSON array."""
    listed = list(rows)
    if as_json:
        show_json(listed)
        return
    cells = [[_cell(row.get(column)) for column in columns] for row in listed]
    header = [column.replace("_", " ").upper() for column in columns]
    widths = [max(len(line[index]) for line in (header, *cells)) for index in range(len(columns))]
    for line in (header, *cells):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_row(row: Fields, columns: Sequence[str], *, as_json: bool) -> None:
    """One thing, a field a line."""
    if as_json:
        show_json(row)
        return
    width = max(len(column) for column in columns)
    for column in columns:
        click.echo(f"{column.replace('_', ' ').ljust(width)}  {_cell(row.get(column))}")


def show_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _cell(value: object) -> str:
    if value is None or value == []:
        return ABSENT
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return str(value)
