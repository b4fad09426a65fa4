"""Which texts a field may hold: what a refusal of another one has to say."""

import re
from collections.abc import Iterator
from functools import lru_cache

from msgspec import inspect

_STEP = re.compile(r"\[(?P<item>[^\]]*)\]|\.?(?P<field>[^.\[]+)")


def possible_values(request_type: type, path: str) -> tuple[str, ...]:
    """By the alphabet; empty where anything, or nothing that can be listed, is possible.

    `path` is msgspec's, as in `messages[0].role`.
    """
    return _possible_values(request_type, re.sub(r"\[[^\]]*\]", "[]", path))


@lru_cache(maxsize=256)
def _possible_values(request_type: type, path: str) -> tuple[str, ...]:
    places: list[inspect.Type] = [inspect.type_info(request_type)]
    steps = list(_STEP.finditer(path))
    for step in steps[:-1]:
        places = [inner for place in places for inner in _inside(place, step["field"])]
    if not steps:
        return ()
    last = steps[-1]["field"]
    return tuple(sorted({value for place in places for value in _values_at(place, last)}))


def _members(place: inspect.Type) -> Iterator[inspect.Type]:
    """The alternatives that a place is made of."""
    if isinstance(place, inspect.UnionType):
        for member in place.types:
            yield from _members(member)
    elif isinstance(place, inspect.Metadata):
        yield from _members(place.type)
    else:
        yield place


def _inside(place: inspect.Type, field: str | None) -> Iterator[inspect.Type]:
    """What is at a struct's field; without a field, the items of lists and the values of objects."""
    for member in _members(place):
        match member:
            case inspect.ListType(item_type=inner) | inspect.DictType(value_type=inner) if field is None:
                yield inner
            case inspect.StructType(fields=fields):
                yield from (each.type for each in fields if each.encode_name == field)


def _values_at(place: inspect.Type, field: str | None) -> Iterator[str]:
    for member in _members(place):
        if isinstance(member, inspect.StructType) and member.tag_field == field and isinstance(member.tag, str):
            yield member.tag
    for inner in _inside(place, field):
        for member in _members(inner):
            if isinstance(member, inspect.LiteralType):
                yield from (value for value in member.values if isinstance(value, str))
