"""What the admin API takes in its fields, and how it answers in pages."""

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from descant_gateway.catalogue.entries import NO_BLANKS_AT_ENDS
from descant_gateway.store.pages import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Cursor, Page
from descant_wire.errors import invalid_request

Name = Annotated[
    str,
    Meta(
        max_length=200,
        pattern=NO_BLANKS_AT_ENDS,
        description="1 to 200 characters; no control characters, no blanks at the ends",
    ),
]
Limit = Annotated[int, Meta(ge=1, le=10**12)]
"""Per minute."""
Days = Annotated[int, Meta(ge=1, le=3650)]
Seconds = Annotated[int, Meta(ge=1, le=30 * 86_400)]
Moment = Annotated[datetime, Meta(tz=True)]
"""To be stored as `utc` has it."""
Names = Annotated[list[Name], Meta(max_length=10_000)]

RowT = TypeVar("RowT")


class Listing(Struct, Generic[RowT], frozen=True):
    data: list[RowT]
    next: str | None = None
    """Pass it as `after` to get the next page; null on the last one."""


def utc(moment: datetime, field: str) -> datetime:
    """Raises ApiError for a moment whose offset puts it out of the calendar, such as 9999-12-31T23:59:59-14:00."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise invalid_request(f"{field}: {moment.isoformat()} has no date in UTC.", param=field) from None


def page_of(size: int | None, after: str | None) -> Page:
    """Raises ApiError for a size out of range and for an `after` that is not a listing's `next`."""
    if size is not None and not 1 <= size <= MAX_PAGE_SIZE:
        raise invalid_request(f"limit is {size}; it may be from 1 to {MAX_PAGE_SIZE}.", param="limit")
    return Page(after=None if after is None else _cursor(after), size=size or DEFAULT_PAGE_SIZE)


def listing(rows: Sequence[RowT], page: Page, cursor_of: Callable[[RowT], Cursor]) -> Listing[RowT]:
    """`rows` are those of the page, and one more if there is a next page."""
    shown = list(rows[: page.size])
    has_more = len(rows) > page.size
    return Listing(shown, _text(cursor_of(shown[-1])) if has_more else None)


def _text(cursor: Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode()


def _cursor(text: str) -> Cursor:
    try:
        cursor = msgspec.json.decode(base64.urlsafe_b64decode(text), type=Cursor)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise invalid_request("after: not the `next` of a listing.", param="after") from None
    return Cursor(utc(cursor.created_at, "after"), cursor.id)
