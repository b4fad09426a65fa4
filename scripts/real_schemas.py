"""Schemas as applications send them: parameters of tools in the manner of public tool servers, with free strings and
descriptions, and the models of OpenAI's client, as Pydantic says them in JSON Schema."""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from inspect import getmembers, isclass
from typing import Any

import openai.types
from pydantic import BaseModel

Schema = dict[str, Any]

MODEL_CHARACTERS = range(250, 1000)
"""Of a schema that says something and leaves room in the prompt."""


def _tool(*required: str, **properties: Schema) -> Schema:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _texts(description: str) -> Schema:
    return {"type": "array", "items": {"type": "string"}, "description": description}


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _whole(low: int, high: int, default: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "default": default}


TOOLS: dict[str, Schema] = {
    "read_file": _tool("path", path=_text("Path of the file"), head=_whole(1, 500, 20)),
    "write_file": _tool("path", "content", path=_text("Path of the file"), content=_text("What to write")),
    "move_file": _tool("source", "destination", source=_text("From"), destination=_text("To")),
    "search_files": _tool(
        "path", "pattern", path={"type": "string"}, pattern=_text("A glob"), exclude=_texts("Globs to leave out")
    ),
    "edit_file": _tool(
        "path",
        "edits",
        path={"type": "string"},
        edits={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"old": _text("Text to replace"), "new": _text("Its replacement")},
                "required": ["old", "new"],
                "additionalProperties": False,
            },
        },
        dry_run={"type": "boolean", "default": False},
    ),
    "create_issue": _tool(
        "repository",
        "title",
        repository={"type": "string", "pattern": "^[a-z0-9-]{1,20}/[a-z0-9-]{1,20}$"},
        title=_text("One line"),
        body={"anyOf": [{"type": "string"}, {"type": "null"}]},
        labels=_texts("Labels"),
    ),
    "list_issues": _tool(
        "state",
        state=_one_of("open", "closed", "all"),
        since={"type": "string", "format": "date-time"},
        page=_whole(1, 100, 1),
        sort=_one_of("created", "updated", "comments"),
    ),
    "post_message": _tool("channel", "text", channel={"type": "string"}, text=_text("The message, in Markdown")),
    "add_reaction": _tool(
        "channel",
        "timestamp",
        "reaction",
        channel={"type": "string"},
        timestamp={"type": "string"},
        reaction=_text("Name"),
    ),
    "query_database": _tool(
        "sql", sql=_text("One SELECT"), parameters={"type": "array", "items": {"type": ["string", "number", "null"]}}
    ),
    "open_page": _tool("url", url={"type": "string", "format": "uri"}, wait_ms=_whole(0, 30000, 1000)),
    "click": _tool("selector", selector=_text("CSS"), button=_one_of("left", "middle", "right"), count=_whole(1, 3, 1)),
    "fill_form": _tool(
        "fields", fields={"type": "object", "additionalProperties": {"type": "string"}, "description": "By selector"}
    ),
    "web_search": _tool(
        "query", query=_text("What to look for"), count=_whole(1, 20, 10), country={"enum": ["de", "no"]}
    ),
    "get_forecast": _tool(
        "latitude",
        "longitude",
        latitude={"type": "number", "minimum": -90, "maximum": 90},
        longitude={"type": "number", "minimum": -180, "maximum": 180},
    ),
    "create_event": _tool(
        "summary",
        "start",
        "end",
        summary={"type": "string"},
        start={"type": "string", "format": "date-time"},
        end={"type": "string", "format": "date-time"},
        attendees={"type": "array", "items": {"type": "string", "format": "email"}, "maxItems": 50},
    ),
    "transfer": _tool(
        "from_account",
        "to_account",
        "cents",
        from_account={"type": "string", "pattern": "^[A-Z]{2}[0-9]{14}$"},
        to_account={"type": "string", "pattern": "^[A-Z]{2}[0-9]{14}$"},
        cents={"type": "integer", "exclusiveMinimum": 0, "maximum": 100_000_000},
    ),
    "remember": _tool(
        "entities",
        entities={
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "kind": {"type": "string"}, "facts": _texts("One a line")},
                "required": ["name", "kind", "facts"],
            },
        },
    ),
    "think": _tool(
        "thought",
        "number",
        "is_last",
        thought=_text("This step"),
        number=_whole(1, 99, 1),
        is_last={"type": "boolean"},
        revises={"anyOf": [{"type": "integer", "minimum": 1, "maximum": 99}, {"type": "null"}]},
    ),
    "convert_time": _tool(
        "time",
        "source_zone",
        "target_zone",
        time={"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
        source_zone=_text("IANA name"),
        target_zone=_text("IANA name"),
    ),
}
"""By the tool's name."""


def client_models(count: int) -> Iterator[tuple[str, Schema]]:
    """(name, schema) of so many models of OpenAI's client, spread evenly over all of them by name."""
    pool = sorted((name, schema) for name, schema in _all_models() if len(json.dumps(schema)) in MODEL_CHARACTERS)
    return (pool[place * len(pool) // count] for place in range(count))


def _all_models() -> Iterator[tuple[str, Schema]]:
    for module in pkgutil.walk_packages(openai.types.__path__, "openai.types."):
        for name, model in getmembers(importlib.import_module(module.name), isclass):
            if issubclass(model, BaseModel) and model.__module__ == module.name:
                yield f"{module.name.removeprefix('openai.types.')}.{name}", model.model_json_schema()
