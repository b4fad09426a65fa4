"""POST /tokenize and /detokenize: vLLM's shapes."""

from typing import Any

from msgspec import Struct

from descant_wire.chat import ChatMessage
from descant_wire.sampling import TokenId
from descant_wire.tools import Tool


class TokenizeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    """Default: true for a prompt, false for messages, whose template holds the special tokens."""
    add_generation_prompt: bool | None = None
    """With messages, as all that follows means there what it means in a chat completion: end with the opening of the
    assistant's turn; true unless said otherwise."""
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    return_token_strs: bool = False


class TokenizeResponse(Struct, frozen=True, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tokens: list[TokenId]
    model: str | None = None


class DetokenizeResponse(Struct, frozen=True, kw_only=True):
    prompt: str
