"""JSON schemas narrowed to short values, which a small model gets to the end of. What fits them fits the schema too."""

import json
from itertools import chain
from math import ceil, floor
from typing import Any

SHORT: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "maxLength": 12},
        {"type": "integer", "minimum": 0, "maximum": 999},
        {"type": "boolean"},
        {"type": "null"},
    ]
}
"""In place of any value."""
ANNOTATIONS = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "$anchor"}
TYPE_OF_KEYWORD = {
    "object": {"properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format", "contentMediaType", "contentEncoding"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
SHORT_FORMATS = {
    "email": "^[a-z]{2,9}@[a-z]{2,9}[.]org$",
    "duration": "^P[1-9][0-9]?D$",
    "uri": "^https://[a-z]{2,9}[.]org$",
    "hostname": "^[a-z]{2,9}[.]org$",
    "time": "^1[0-9]:[0-5][0-9]:[0-5][0-9]Z$",
    "date-time": "^20[0-9]{2}-1[0-2]-[12][0-9]T1[0-9]:[0-5][0-9]:[0-5][0-9]Z$",
}
"""Of which every string has the format, and is short."""
NAMED = ("properties", "patternProperties", "$defs", "definitions")
LISTED = ("anyOf", "oneOf", "prefixItems")


def bounded(schema: Any) -> Any:
    if schema is True or schema == {}:
        return SHORT
    if not isinstance(schema, dict):
        return schema
    result = {keyword: _part(keyword, value) for keyword, value in _without_recursion(schema).items()}
    if not result.keys() - ANNOTATIONS - {"$defs", "definitions"}:
        return result | SHORT
    kind = schema.get("type") or _implied_type(schema)
    if isinstance(kind, list):
        kind = kind[0]
    if not isinstance(kind, str) or result.keys() & {"const", "enum"}:
        return result
    return result | {"type": kind} | _bounds(kind, result)


def _without_recursion(schema: dict[str, Any]) -> dict[str, Any]:
    """Properties that need not be there, and refer to something, may be all there is again."""
    if not isinstance(properties := schema.get("properties"), dict):
        return schema
    required = schema.get("required", ())
    kept = {name: part for name, part in properties.items() if name in required or "$ref" not in json.dumps(part)}
    return schema | {"properties": kept, "additionalProperties": False} if kept else schema


def _part(keyword: str, value: Any) -> Any:
    match keyword, value:
        case _, dict() if keyword in NAMED:
            return {name: bounded(part) for name, part in value.items()}
        case _, list() if keyword in LISTED:
            return [bounded(part) for part in value]
        case (("items" | "additionalProperties"), _):
            return bounded(value)
        case _:
            return value


def _implied_type(schema: dict[str, Any]) -> str | None:
    """Of a schema that says nothing about other types: values of this one are its subject."""
    if schema.keys() & {"$ref", "enum", "const", "anyOf", "oneOf"}:
        return None
    kinds = (kind for kind, keywords in TYPE_OF_KEYWORD.items() if schema.keys() & keywords)
    parts = (part.get("type") or _implied_type(part) for part in schema.get("allOf", ()) if isinstance(part, dict))
    return next(chain(kinds, filter(None, parts)), None)


def _bounds(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    match kind:
        case "string" if schema.get("format") in SHORT_FORMATS:
            return {"pattern": SHORT_FORMATS[schema["format"]]}
        case "string" if not schema.keys() & {"maxLength", "pattern", "format"}:
            return {"maxLength": max(16, schema.get("minLength", 0))}
        case "array":
            items = {} if schema.keys() & {"items", "allOf"} else {"items": SHORT}
            return items | _at_most("maxItems", schema, "minItems")
        case "object" if not schema.keys() & {"properties", "patternProperties", "additionalProperties", "allOf"}:
            return {"additionalProperties": SHORT} | _at_most("maxProperties", schema, "minProperties")
        case "integer" | "number":
            return _whole_number(schema)
        case _:
            return {}


def _whole_number(schema: dict[str, Any]) -> dict[str, Any]:
    """Of few digits, where there is one."""
    if "allOf" in schema:  # whose bounds are there
        return {"type": "integer", "maximum": 999}
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None:
        low = -999 if high is None else high - 999
    high = low + 999 if high is None else high
    if schema.get("type") == "number" and high - low < 2:
        return {}
    return {"type": "integer", "minimum": ceil(low), "maximum": floor(high)}


def _at_most(most: str, schema: dict[str, Any], least: str) -> dict[str, Any]:
    return {} if most in schema else {most: max(2, int(schema.get(least, 0)))}
