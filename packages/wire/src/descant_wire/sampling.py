"""The sampling fields that chat and text completions share."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from descant_wire.structured import ResponseFormat, Schema, StructuredOutputs

MAX_INT32 = 2**31 - 1
TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
Priority = Annotated[int, Meta(ge=-MAX_INT32 - 1, le=MAX_INT32)]


class StreamOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False
    """Padding against traffic analysis. Refused when true."""
    continuous_usage_stats: bool = False
    """vLLM's: usage in every chunk. Refused when true."""

    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "include_obfuscation": (False,),
        "continuous_usage_stats": (False,),
    }


class SamplingFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ranges are checked by the engine's SamplingParams, the one place that knows them; types are checked here.

    `only` names the fields that we know but don't honour in full, with the values that change nothing; null is always
    one of them. Anything else is refused by name, never ignored.
    """

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None

    n: int | None = None
    logit_bias: dict[str, float] | None = None
    """Token id, as JSON's keys are strings, -> what is added to its logit."""

    # vLLM's additions.
    top_k: int | None = None
    """0 or -1 keeps all tokens."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    priority: Priority | None = None
    """Lower runs earlier, as in vLLM."""
    cache_salt: str | None = None
    """Requests of different salts never share prefix blocks."""

    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    """Only the last so many tokens of the prompt are taken; -1 takes as many as the context holds."""
    return_tokens_as_token_ids: bool | None = None
    """Tokens in log-probabilities are written as "token_id:123"."""
    spaces_between_special_tokens: bool | None = None
    """Harmless: the tokenizers that we serve put no spaces there, whatever is asked of them."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = None
    """An older name, as the next ones, for a field of `structured_outputs`."""
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    user: str | None = None
    """Harmless: an end user's name for the provider's abuse reports; there is no such provider here."""

    # Refused unless they ask for what happens anyway.
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None
    """Of beam search."""

    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "use_beam_search": (False,),
        "length_penalty": (1,),
        "early_stopping": (False,),
    }

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


FinishReason = Literal["stop", "length", "tool_calls", "abort"]
"""OpenAI's, and vLLM's "abort" for a request that the server ended early."""
