"""Rows as the structs that this folder gives out."""

from typing import Any, TypeVar

from msgspec import Struct
from sqlalchemy import Row

StructT = TypeVar("StructT", bound=Struct)


def struct_of(kind: type[StructT], row: Row[Any]) -> StructT:
    """Each field from the column of its name, as it is."""
    return kind(**{name: getattr(row, name) for name in kind.__struct_fields__})
