"""POST /tokenize and /detokenize: vLLM's shapes."""

from msgspec import Struct

from descant_wire.chat import ChatMessage
from descant_wire.sampling import TokenId


class TokenizeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    """Default: true for a prompt, false for messages, whose template holds the special tokens."""
    add_generation_prompt: bool = True
    """With messages: end with the opening of the assistant's turn."""
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
