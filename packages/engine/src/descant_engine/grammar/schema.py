"""JSON schemas before they are compiled: read, closed, and checked for a finite output. Pure functions on plain JSON.

References within the schema are followed; others never fetch anything and are refused by the backends.
"""

import json
from typing import Any

from descant_engine.grammar.spec import GrammarRefused

MAX_DEPTH = 64
"""Of nesting; schemas that people write stay below ten."""
Schema = dict[str, Any] | bool


def read_schema(text: str) -> dict[str, Any]:
    """`true` is read as {}, which means the same. Raises GrammarRefused: no JSON, no schema, or nested too deeply."""
    try:
        schema = json.loads(text)
    except RecursionError:
        raise GrammarRefused(f"it is nested more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        raise GrammarRefused(f"it is not JSON: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise GrammarRefused(f"a schema is an object; got {type(schema).__name__}")
    if schema is False:
        raise GrammarRefused("no value satisfies the schema `false`")
    _check_depth(schema, 0)
    return {} if schema is True else schema


def _check_depth(value: object, depth: int) -> None:
    if depth > 2 * MAX_DEPTH:  # a level of a schema is two of JSON: the schema, and its properties
        raise GrammarRefused(f"it is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            _check_depth(part, depth + 1)


def closed(schema: Schema) -> Schema:
    """The same, but objects that name their properties and don't say whether others may be there have no others.

    A small model left free to invent properties seldom stops. Parts of an allOf are left alone: they add up.
    """
    if not isinstance(schema, dict):
        return schema
    result = {keyword: _closed_part(keyword, value) for keyword, value in schema.items()}
    is_open = "additionalProperties" not in schema and "unevaluatedProperties" not in schema
    if is_open and schema.get("properties") and not schema.keys() & {"patternProperties", "allOf", "$ref"}:
        result["additionalProperties"] = False
    return result


def _closed_part(keyword: str, value: Any) -> Any:
    match keyword, value:
        case (("properties" | "patternProperties" | "$defs" | "definitions"), dict()):
            return {name: closed(part) for name, part in value.items()}
        case (("anyOf" | "oneOf" | "prefixItems"), list()):
            return [closed(part) for part in value]
        case (("items" | "additionalProperties"), dict()):
            return closed(value)
        case _:
            return value


def check_has_finite_output(schema: Schema) -> None:
    """A schema whose every value contains another value of it (a list of at least one such list, ...) has none.

    Raises:
        GrammarRefused: there is no finite value, as far as references, required parts and alternatives tell.
    """
    if not _Finiteness(schema).of(schema, frozenset()):
        raise GrammarRefused("no finite value satisfies it: it requires itself within itself")


class _Finiteness:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: set[str] = set()
        """References that have a finite value."""

    def of(self, schema: object, inside: frozenset[str]) -> bool:
        """`inside`: the references that are being looked at; through them alone no value gets finite."""
        if not isinstance(schema, dict):
            return schema is not False
        if isinstance(reference := schema.get("$ref"), str) and not self._of_reference(reference, inside):
            return False
        for keyword in ("anyOf", "oneOf"):
            parts = schema.get(keyword)
            if isinstance(parts, list) and not any(self.of(part, inside) for part in parts):
                return False
        if not all(self.of(part, inside) for part in _list(schema, "allOf")):
            return False
        # Only what must be there counts, and only if the value must be an object, or a list.
        if schema.get("type") == "object":
            return all(self.of(_property(schema, name), inside) for name in _list(schema, "required"))
        if schema.get("type") == "array" and isinstance(count := schema.get("minItems", 0), int) and count > 0:
            prefix = _list(schema, "prefixItems")[:count]
            rest = schema.get("items", True) if count > len(prefix) else True
            return all(self.of(part, inside) for part in [*prefix, rest])
        return True

    def _of_reference(self, reference: str, inside: frozenset[str]) -> bool:
        if reference in inside:
            return False
        if reference not in self._known and self.of(self._resolve(reference), inside | {reference}):
            self._known.add(reference)
        return reference in self._known

    def _resolve(self, reference: str) -> object:
        """`true` for what is not in this schema: the backends say so better."""
        if not reference.startswith("#"):
            return True
        found: Any = self._root
        for name in reference[1:].split("/")[1:]:
            key = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                return True
            found = found[key]
        return found


def _list(schema: dict[str, Any], keyword: str) -> list[Any]:
    value = schema.get(keyword)
    return value if isinstance(value, list) else []


def _property(schema: dict[str, Any], name: object) -> object:
    properties = schema.get("properties")
    return properties.get(name, True) if isinstance(properties, dict) and isinstance(name, str) else True
