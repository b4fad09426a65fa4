"""Rows as CSV that a spreadsheet may open."""

import csv
import io
from collections.abc import Iterable, Sequence

from litestar import Response


def csv_response(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Response[bytes]:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return Response(text.getvalue().encode(), media_type="text/csv")


def _cell(value: object) -> str:
    """A name that begins like a formula gets a quote before it."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
