"""Where in a TOML text a key is: the standard library's parser gives values without their lines."""

import re
from collections.abc import Sequence
from typing import Final

_HEADER: Final = re.compile(r"\s*\[\[?\s*(?P<keys>[^\]]+?)\s*\]\]?")
_ONE_KEY: Final = r"(?:\"[^\"]*\"|'[^']*'|[\w-]+)"
_ASSIGNMENT: Final = re.compile(rf"\s*(?P<keys>{_ONE_KEY}(?:\s*\.\s*{_ONE_KEY})*)\s*=")
_KEY: Final = re.compile(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)")


def line_of(text: str, path: Sequence[str]) -> int | None:
    """The line, from 1, that defines `path` or the nearest that contains it; None for a path of which nothing is there.

    Reads headers and assignments as they are usually written; what is inside a value counts as its first line.
    """
    best: int | None = None
    best_depth, table = 0, tuple[str, ...]()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = found = _split(header["keys"])
        elif assignment := _ASSIGNMENT.match(line):
            found = (*table, *_split(assignment["keys"]))
        else:
            continue
        depth = min(len(found), len(path))
        if depth > best_depth and found[:depth] == tuple(path[:depth]):
            best, best_depth = number, depth
    return best


def _split(keys: str) -> tuple[str, ...]:
    return tuple(next(filter(None, match.groups()), "") for match in _KEY.finditer(keys))
