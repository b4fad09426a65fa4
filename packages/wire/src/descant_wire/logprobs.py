"""Log-probabilities in answers: OpenAI's two shapes, and vLLM's for prompts. Natural logarithms."""

from msgspec import Struct


class TopLogprob(Struct, frozen=True, kw_only=True):
    """A likely token at some place."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    """What the token adds to the text; with several tokens to a character, only together they are UTF-8."""


class TokenLogprob(TopLogprob, frozen=True, kw_only=True):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True, kw_only=True):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(Struct, frozen=True, kw_only=True):
    """Lists of one length: one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """None for the first token of a prompt: there is nothing before it."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Characters of the choice's text before the token."""


class PromptLogprob(Struct, frozen=True, kw_only=True):
    logprob: float
    rank: int
    """1 is the likeliest."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""vLLM's: for each token of the prompt, by token id, itself and the likeliest ones; null for the first."""
