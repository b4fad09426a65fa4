"""JSON schemas narrowed to short values, which a small model gets to the end of. What fits them fits the schema too."""

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
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
NAMED = ("properties", "patternProperties", "$defs", "definitions")
LISTED = ("anyOf", "oneOf", "prefixItems")


def bounded(schema: Any) -> Any:
    if schema is True or schema == {}:
        return SHORT
    if not isinstance(schema, dict):
        return schema
    result = {keyword: _part(keyword, value) for keyword, value in schema.items()}
    if not result.keys() - ANNOTATIONS - {"$defs", "definitions"}:
        return result | SHORT
    kind = schema.get("type") or _implied_type(schema)
    if not isinstance(kind, str):
        return result
    return {"type": kind} | result | _bounds(kind, result)


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
    if schema.keys() & {"$ref", "enum", "const", "anyOf", "oneOf", "allOf"}:
        return None
    return next((kind for kind, keywords in TYPE_OF_KEYWORD.items() if schema.keys() & keywords), None)


def _bounds(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    match kind:
        case "string" if not schema.keys() & {"maxLength", "pattern", "format"}:
            return {"maxLength": max(16, schema.get("minLength", 0))}
        case "array" if "items" not in schema:
            return {"items": SHORT} | _at_most("maxItems", schema, "minItems")
        case "array":
            return _at_most("maxItems", schema, "minItems")
        case "object" if not schema.keys() & {"properties", "patternProperties", "additionalProperties"}:
            return {"additionalProperties": SHORT} | _at_most("maxProperties", schema, "minProperties")
        case "integer" | "number" if not schema.keys() & set(TYPE_OF_KEYWORD["number"]):
            return {"minimum": -999, "maximum": 999}
        case _:
            return {}


def _at_most(most: str, schema: dict[str, Any], least: str) -> dict[str, Any]:
    return {} if most in schema else {most: max(2, int(schema.get(least, 0)))}
