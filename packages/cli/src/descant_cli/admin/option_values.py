"""Several options of a command that are one value: a dataclass with a field for each."""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

Command = Callable[..., None]
Option = Callable[[Command], Command]
ValueT = TypeVar("ValueT")


def takes(name: str, kind: type[ValueT], *options: Option) -> Option:
    """Gives a command these options, in this order, and calls it with one `kind` of their values, called `name`."""
    own = {field.name for field in fields(kind)}  # type: ignore[arg-type]

    def decorate(command: Command) -> Command:
        @wraps(command)
        def call(**given: Any) -> None:
            value = kind(**{key: given.pop(key) for key in own})
            command(**given, **{name: value})

        decorated: Command = call
        for each in reversed(options):
            decorated = each(decorated)
        return decorated

    return decorate
