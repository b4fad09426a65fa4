"""POST /v1/messages, Anthropic's Messages API. Reference: https://docs.anthropic.com/en/api/messages

Fields that are typed Any are known and not honoured: `only` names the values that change nothing.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from msgspec import Struct


class TextBlock(Struct, frozen=True, kw_only=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str
    cache_control: Any = None
    """Harmless, as everywhere: prefix blocks are found by content."""
    citations: Any = None


class ImageBlock(Struct, frozen=True, kw_only=True, tag_field="type", tag="image"):
    source: Any = None


class DocumentBlock(Struct, frozen=True, kw_only=True, tag_field="type", tag="document"):
    source: Any = None


class SearchResultBlock(Struct, frozen=True, kw_only=True, tag_field="type", tag="search_result"):
    source: Any = None


class ThinkingBlock(Struct, frozen=True, kw_only=True, tag_field="type", tag="thinking", forbid_unknown_fields=True):
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Struct, frozen=True, kw_only=True, tag_field="type", tag="redacted_thinking"):
    data: str = ""


class ToolUseBlock(Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_use", forbid_unknown_fields=True):
    id: str
    name: str
    input: dict[str, Any]
    cache_control: Any = None
    caller: Any = None


ResultBlock = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock


class ToolResultBlock(
    Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_result", forbid_unknown_fields=True
):
    tool_use_id: str
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = None
    cache_control: Any = None


ContentBlock = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
)


class InputMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant"]
    content: str | list[ContentBlock]


class ToolDefinition(Struct, frozen=True, kw_only=True):
    """A tool of the client's own; `type` names those of Anthropic's servers, which are not here."""

    name: str
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None


class ToolChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, frozen=True, kw_only=True):
    type: str
    budget_tokens: int | None = None


class MessagesRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str
    max_tokens: int
    messages: list[InputMessage]
    system: str | list[TextBlock] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    metadata: dict[str, str | None] | None = None

    service_tier: str | None = None
    thinking: Thinking | None = None
    cache_control: Any = None
    container: Any = None
    context_management: Any = None
    inference_geo: Any = None
    mcp_servers: list[Any] | None = None
    output_config: Any = None
    output_format: Any = None

    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "service_tier": ("auto", "standard_only"),
        "thinking": (Thinking(type="disabled"),),
        "container": (),
        "context_management": (),
        "inference_geo": (),
        "mcp_servers": ([],),
        "output_config": ({},),
        "output_format": (),
    }


class CountTokensRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages/count_tokens: what of a message makes its prompt."""

    model: str
    messages: list[InputMessage]
    system: str | list[TextBlock] | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    cache_control: Any = None
    context_management: Any = None
    mcp_servers: list[Any] | None = None
    output_config: Any = None
    output_format: Any = None


class CountedTokens(Struct, frozen=True, kw_only=True):
    input_tokens: int


class MessagesUsage(Struct, frozen=True, kw_only=True):
    input_tokens: int
    """Without those that the prefix cache had."""
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]
