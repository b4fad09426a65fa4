"""POST /v1/completions. Reference: https://platform.openai.com/docs/api-reference/completions"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from msgspec import UNSET, Struct, UnsetType

from descant_wire.errors import invalid_request
from descant_wire.inputs import Input, inputs_of
from descant_wire.logprobs import CompletionLogprobs, PromptLogprobs
from descant_wire.sampling import FinishReason, SamplingFields, TokenId
from descant_wire.usage import Usage

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 256


class CompletionRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prompt: str | list[str | TokenId | list[TokenId]]
    add_special_tokens: bool | None = None
    """vLLM's: whether the tokenizer adds its begin-of-sequence token to a text prompt; true unless said otherwise."""
    best_of: int | None = None
    """Generate so many, and answer with the `n` likeliest ones."""
    logprobs: int | None = None
    """Log-probabilities of each token, and of so many of the likeliest ones at its place."""
    echo: bool | None = None
    """The prompt goes before the output, in text and log-probabilities."""

    # Refused unless they ask for what happens anyway.
    suffix: str | None = None

    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SamplingFields.only,
        "suffix": ("",),
    }

    @property
    def completion_limit(self) -> int:
        """OpenAI's default for text completions is 16 tokens."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def wants_prompt_only(self) -> bool:
        """An echo without any output, for the prompt's log-probabilities."""
        return bool(self.echo) and self.max_tokens == 0

    def prompts(self) -> list[Input]:
        """Each gives `n` choices of the answer.

        Raises:
            ApiError: 400, for an empty list, a list of several kinds of thing, or more than MAX_PROMPTS prompts.
        """
        prompts = inputs_of(self.prompt, "prompt")
        if len(prompts) > MAX_PROMPTS:
            raise invalid_request(f"`prompt` has {len(prompts)} entries; at most {MAX_PROMPTS} fit.", param="prompt")
        return prompts


class CompletionChoice(Struct, frozen=True, kw_only=True):
    index: int
    text: str
    finish_reason: FinishReason
    logprobs: CompletionLogprobs | None = None
    stop_reason: int | str | None = None
    """vLLM's: the stop string or the stop token that ended it."""
    prompt_logprobs: PromptLogprobs | None = None
    """vLLM's"""


class Completion(Struct, frozen=True, kw_only=True):
    id: str
    created: int
    """Unix time, seconds."""
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: None = None


class CompletionChunkChoice(Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """In the choice's first event, if they were asked for."""


class CompletionChunk(Struct, frozen=True, kw_only=True):
    """One event of the stream. The usage chunk, when asked for, has no choices and comes last."""

    id: str
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: None = None
