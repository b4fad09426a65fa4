"""Keyset pages: rows in the order of (created_at, id), so that a page is cheap at any depth and never skips a row."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Select, Table, tuple_

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 500


class Cursor(Struct, frozen=True):
    """The last row of the page before."""

    created_at: datetime
    id: UUID


class Page(Struct, frozen=True):
    """Where to start (None: at the beginning) and how many rows to take."""

    after: Cursor | None = None
    size: int = DEFAULT_PAGE_SIZE


def paged(query: Select[Any], table: Table, page: Page) -> Select[Any]:
    """Asks for one row more than the page has: if it comes, another page follows."""
    position = tuple_(table.c.created_at, table.c.id)
    if page.after is not None:
        query = query.where(position > (page.after.created_at, page.after.id))
    return query.order_by(table.c.created_at, table.c.id).limit(page.size + 1)
