"""What xgrammar keeps to exactly, and quickly. It takes more than that, and passes over the rest without a word."""

import re
from collections.abc import Iterator
from typing import Any

_SCHEMA_KEYWORDS: dict[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset(),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}
"""By type, what it honours exactly; the rest it may ignore. It counts a string's characters exactly too, but at
milliseconds a mask."""
_NEUTRAL_KEYWORDS = frozenset(
    {"type", "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions"}
)
_PLAIN_REGEX = re.compile(r"(?:[^\\(^$]|\\[dwsnrt.*+?()\[\]{}|/\"'$^-]|\((?!\?)|\(\?:)*")
"""No look-around, flags, anchors inside or Unicode classes: these mean the same to everybody."""
_CLASS_OF_CLASSES = re.compile(r"\[[^\]]*\[|&&|--|~~")
"""A class within a class, or what is left of one by another: a language of llguidance's alone."""


def honours_regex(pattern: str) -> bool:
    return _PLAIN_REGEX.fullmatch(pattern) is not None and _CLASS_OF_CLASSES.search(pattern) is None


def honours_schema(schema: object) -> bool:
    """Whether every keyword in the schema is one that xgrammar keeps to exactly."""
    return all(_is_honoured(part) for part in _subschemas(schema))


def _is_honoured(schema: dict[str, Any]) -> bool:
    keywords = schema.keys() - _NEUTRAL_KEYWORDS
    if keywords <= {"$ref"} or keywords <= {"anyOf"}:
        return str(schema.get("$ref", "#")).startswith("#") and ("type" not in schema or not keywords)
    if keywords <= {"enum"} or keywords <= {"const"}:
        return True
    kind = schema.get("type")
    if not isinstance(kind, str) or not keywords <= _SCHEMA_KEYWORDS.get(kind, frozenset()):
        return False
    return kind != "object" or isinstance(schema.get("additionalProperties", True), bool)


def _subschemas(schema: object) -> Iterator[dict[str, Any]]:
    """The schema and all within it. What is `true` or `false` instead of an object is honoured by everybody."""
    if not isinstance(schema, dict):
        return
    yield schema
    for keyword in ("properties", "$defs", "definitions"):
        if isinstance(named := schema.get(keyword), dict):
            for part in named.values():
                yield from _subschemas(part)
    for part in schema.get("anyOf", ()):
        yield from _subschemas(part)
    yield from _subschemas(schema.get("items"))
