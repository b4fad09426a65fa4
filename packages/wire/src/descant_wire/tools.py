"""Tools in a chat: https://platform.openai.com/docs/guides/function-calling"""

from typing import Any, Literal

from msgspec import Struct


class FunctionDefinition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema; none means that it takes no arguments."""
    strict: bool | None = None
    """Harmless: calls that are required or named keep to the schema in any case, others are the model's own."""


class Tool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    function: FunctionDefinition
    type: Literal["function"] = "function"


class FunctionName(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str


class NamedToolChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    function: FunctionName
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class FunctionCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    arguments: str
    """JSON text."""
    parsed_arguments: Any = None
    """Harmless: what OpenAI's client read out of them for its user."""


class ToolCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"
    index: int | None = None
    """Harmless: clients that add up a stream leave it there."""


class AnsweredToolCall(Struct, frozen=True, kw_only=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class FunctionCallDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    index: int
    """The call's place among those of the message."""
    id: str | None = None
    """With the call's first piece, as type and name."""
    type: Literal["function"] | None = None
    function: FunctionCallDelta
