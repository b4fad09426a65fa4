"""What a request may demand of its output's form: OpenAI's `response_format` and vLLM's `structured_outputs`."""

from typing import Any

from msgspec import Struct

Schema = dict[str, Any] | bool


class TextFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class JsonObjectFormat(
    Struct, frozen=True, kw_only=True, tag_field="type", tag="json_object", forbid_unknown_fields=True
):
    """Any JSON object."""


class NamedSchema(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    schema: Schema | None = None
    description: str | None = None
    strict: bool | None = None
    """Harmless: the output keeps to the schema in any case."""


class JsonSchemaFormat(
    Struct, frozen=True, kw_only=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True
):
    json_schema: NamedSchema


class StructuralTagFormat(
    Struct, frozen=True, kw_only=True, tag_field="type", tag="structural_tag", forbid_unknown_fields=True
):
    """vLLM's: `format` in xgrammar's form, or the older `structures` and `triggers`."""

    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat


class StructuredOutputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's: exactly one of these."""

    json: Schema | str | None = None
    """A JSON schema, or its text."""
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    """EBNF or Lark."""
    json_object: bool | None = None
    structural_tag: dict[str, Any] | str | None = None
