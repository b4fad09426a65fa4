"""POST /v1/responses. Reference: https://platform.openai.com/docs/api-reference/responses

Fields that are typed Any are known and not honoured: `only` names the values that change nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Raw, Struct

from descant_wire.structured import Schema


class PlainFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class ObjectFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class SchemaFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    name: str
    schema: Schema
    description: str | None = None
    strict: bool | None = None


class TextOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: PlainFormat | ObjectFormat | SchemaFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class FunctionTool(Struct, frozen=True, kw_only=True):
    """`type` names other kinds, which are run by OpenAI's servers and refused here."""

    type: str
    name: str | None = None
    parameters: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class NamedFunction(Struct, frozen=True, kw_only=True):
    type: str
    name: str | None = None


class CreateResponse(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str
    input: str | list[dict[str, Raw]] = ""
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    """True unless said otherwise."""
    stream: bool | None = None
    background: bool | None = None
    """It is made while the client does something else, who asks for it by its id."""
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    conversation: Any = None
    context_management: Any = None
    include: list[str] | None = None
    max_tool_calls: int | None = None
    prompt: Any = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None
    moderation: Any = None
    service_tier: str | None = None
    stream_options: Any = None
    top_logprobs: int | None = None
    truncation: str | None = None

    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "conversation": (),
        "context_management": ([],),
        "include": ([],),
        "max_tool_calls": (),
        "prompt": (),
        "prompt_cache_retention": ("in_memory",),
        "prompt_cache_options": (),
        "moderation": (),
        "service_tier": ("auto", "default"),
        "stream_options": ({}, {"include_obfuscation": False}),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }


class CachedTokens(Struct, frozen=True, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int = 0
    """What is charged for being kept: nothing is."""


class ReasoningTokens(Struct, frozen=True, kw_only=True):
    reasoning_tokens: int


class ResponseUsage(Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class DeletedResponse(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class ItemList(Struct, frozen=True, kw_only=True):
    data: list[Raw]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"
