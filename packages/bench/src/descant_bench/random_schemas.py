"""JSON schemas at random, in the manner of real tools' and of what standards test: small enough that a small model gets
to the end of a value, and together using every keyword that the engine supports."""

from collections.abc import Callable
from random import Random
from typing import Any

Schema = dict[str, Any]

NAMES = tuple("name city unit price count tags email date items status owner note lines score active limit".split())  # noqa: SIM905
WORDS = tuple("red green blue open closed pending low high urgent metric imperial north south".split())  # noqa: SIM905
PATTERNS = ("^[A-Z]{3}-[0-9]{4}$", "^[a-z]{2,8}$", "^(?:yes|no|maybe)$", "^#[0-9a-f]{6}$", "^v[0-9]+\\.[0-9]+$")
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4")

TOOLS: tuple[Schema, ...] = (
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20, "description": "City and country, e.g. Bergen, Norway"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "to": {"type": "array", "items": {"type": "string", "format": "email"}, "minItems": 1, "maxItems": 3},
            "subject": {"type": "string", "maxLength": 40},
            "urgent": {"type": "boolean"},
            "send_at": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
        },
        "required": ["to", "subject", "urgent", "send_at"],
    },
    {
        "type": "object",
        "properties": {
            "table": {"enum": ["orders", "customers", "stock"]},
            "where": {"type": "array", "items": {"$ref": "#/$defs/condition"}, "maxItems": 2},
            "limit": {"type": ["integer", "null"], "minimum": 1, "maximum": 1000},
        },
        "required": ["table", "where"],
        "$defs": {
            "condition": {
                "type": "object",
                "properties": {
                    "column": {"type": "string", "pattern": "^[a-z_]{1,16}$"},
                    "operator": {"enum": ["=", "<", ">", "like"]},
                    "value": {"anyOf": [{"type": "number"}, {"type": "string", "maxLength": 12}, {"type": "boolean"}]},
                },
                "required": ["column", "operator", "value"],
            }
        },
    },
    {
        "type": "object",
        "properties": {
            "lines": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
                        "quantity": {"type": "integer", "minimum": 1, "maximum": 99},
                        "price": {"type": "number", "minimum": 0, "maximum": 1000},
                    },
                    "required": ["sku", "quantity"],
                },
                "minItems": 1,
                "maxItems": 3,
            },
            "coupon": {"type": "string", "minLength": 4, "maxLength": 8},
        },
        "required": ["lines"],
    },
)  # fmt: skip
"""Parameters of functions that applications have."""


def random_schemas(count: int, seed: int = 0) -> list[Schema]:
    """The first ones are TOOLS. Every value of each is of bounded length."""
    random = Random(seed)
    return [*TOOLS[:count], *(_root(random) for _ in range(count - len(TOOLS)))]


def _root(random: Random) -> Schema:
    kind = random.random()
    if kind < 0.7:
        return _object(random, 2)
    if kind < 0.85:
        return _array(random, 2)
    if kind < 0.93:
        return _with_definition(random)
    return _leaf(random)


def _value(random: Random, depth: int) -> Schema:
    if depth == 0 or random.random() < 0.6:
        return _leaf(random)
    makers: tuple[Callable[[Random, int], Schema], ...] = (_object, _array, _alternatives)
    return random.choice(makers)(random, depth - 1)


def _object(random: Random, depth: int) -> Schema:
    names = random.sample(NAMES, random.randint(1, 4))
    schema: Schema = {"type": "object", "properties": {name: _value(random, depth) for name in names}}
    schema["required"] = random.sample(names, random.randint(0, len(names)))
    if random.random() < 0.5:
        schema["additionalProperties"] = False
    return schema


def _array(random: Random, depth: int) -> Schema:
    low = random.randint(0, 2)
    schema: Schema = {"type": "array", "minItems": low, "maxItems": low + random.randint(0, 2)}
    if random.random() < 0.2:
        return {"type": "array", "prefixItems": [_leaf(random), _leaf(random)], "items": False, "minItems": 2}
    return schema | {"items": _value(random, depth)}


def _alternatives(random: Random, depth: int) -> Schema:
    if random.random() < 0.3:
        return {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 99}, {"type": "null"}]}
    return {"anyOf": [_value(random, depth), {"type": "null"}]}


def _with_definition(random: Random) -> Schema:
    """A list of nodes that hold further ones, two levels at the most being likely."""
    node = {
        "type": "object",
        "properties": {"id": _leaf(random), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
        "required": ["id"],
    }
    return {"$ref": "#/$defs/node", "$defs": {"node": node}}


def _leaf(random: Random) -> Schema:
    low = random.randint(-50, 50)
    makers: tuple[Callable[[], Schema], ...] = (
        lambda: {"type": "string", "maxLength": random.randint(1, 16)},
        lambda: {"type": "string", "minLength": 2, "maxLength": 8},
        lambda: {"type": "string", "pattern": random.choice(PATTERNS)},
        lambda: {"type": "string", "format": random.choice(FORMATS)},
        lambda: {"enum": random.sample(WORDS, 3)},
        lambda: {"const": random.choice((1, "fixed", True, None, {"a": [1, "b"]}))},
        lambda: {"type": "integer", "minimum": low, "maximum": low + random.randint(0, 500)},
        lambda: {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 7},
        lambda: {"type": "integer", "multipleOf": random.choice((2, 5, 10)), "minimum": 0, "maximum": 100},
        lambda: {"type": "number", "minimum": low, "maximum": low + 3.5},
        lambda: {"type": "boolean"},
        lambda: {"type": ["string", "null"], "maxLength": 8},
    )
    return random.choice(makers)()
