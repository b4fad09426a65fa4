"""Structural tags, in xgrammar's form and the older one of vLLM, whose tags are {begin, schema, end}."""

from collections.abc import Iterator
from typing import Any

from descant_engine.grammar.schema import Schema, closed, read_schema
from descant_engine.grammar.spec import GrammarRefused


def read_structural_tag(text: str) -> dict[str, Any]:
    """In the current form, with its schemas closed. Raises GrammarRefused: it has neither form."""
    tag = read_schema(text)
    if "structures" in tag:
        tag = _from_older_form(tag)
    if not isinstance(tag.get("format"), dict):
        raise GrammarRefused('it needs a "format", or "structures" and "triggers"')
    result: dict[str, Any] = _with_closed_schemas({"type": "structural_tag", "format": tag["format"]})
    return result


def schemas_of(tag: object) -> Iterator[Schema]:
    """Every JSON schema in it."""
    if isinstance(tag, list):
        for part in tag:
            yield from schemas_of(part)
    elif isinstance(tag, dict):
        for key, part in tag.items():
            if key == "json_schema":
                yield part
            else:
                yield from schemas_of(part)


def _from_older_form(tag: dict[str, Any]) -> dict[str, Any]:
    structures, triggers = tag["structures"], tag.get("triggers")
    if not (isinstance(structures, list) and isinstance(triggers, list) and triggers):
        raise GrammarRefused('"structures" and "triggers" are lists, and there is at least one trigger')
    tags = [_tag(index, structure) for index, structure in enumerate(structures)]
    return {"format": {"type": "triggered_tags", "triggers": triggers, "tags": tags}}


def _tag(index: int, structure: object) -> dict[str, Any]:
    if not isinstance(structure, dict) or not {"begin", "schema", "end"} <= structure.keys():
        raise GrammarRefused(f"structures[{index}] is an object with begin, schema and end")
    schema = structure["schema"]
    content = {"type": "json_schema", "json_schema": read_schema(schema) if isinstance(schema, str) else schema}
    return {"type": "tag", "begin": structure["begin"], "content": content, "end": structure["end"]}


def _with_closed_schemas(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_closed_schemas(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {key: closed(part) if key == "json_schema" else _with_closed_schemas(part) for key, part in value.items()}
