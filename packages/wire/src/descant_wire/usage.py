"""What a request consumed, in tokens."""

from msgspec import Struct


class PromptTokensDetails(Struct, frozen=True, kw_only=True):
    cached_tokens: int = 0
    """Prompt tokens whose KV came from the prefix cache."""


class CompletionTokensDetails(Struct, frozen=True, kw_only=True):
    reasoning_tokens: int = 0
    """Tokens of what the model thought before it answered."""


class Usage(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> "Usage":
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
        )
