"""POST /v1/chat/completions. Reference: https://platform.openai.com/docs/api-reference/chat"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from msgspec import UNSET, Struct, UnsetType, field

from descant_wire.logprobs import ChatLogprobs, PromptLogprobs
from descant_wire.sampling import FinishReason, SamplingFields
from descant_wire.tools import AnsweredToolCall, Tool, ToolCall, ToolCallDelta, ToolChoice
from descant_wire.usage import Usage

Role = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A piece of a message; text is the only kind."""

    type: Literal["text"]
    text: str


class ChatMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Role
    content: str | list[TextPart] | None = None
    name: str | None = None
    """Tells speakers of one role apart, where the model's chat template has a place for it."""

    tool_calls: list[ToolCall] | None = None
    """What the assistant called."""
    tool_call_id: str | None = None
    """Which of the calls a tool's message answers."""
    reasoning_content: str | None = None
    """What the assistant thought; shown to the model only if its chat template does."""

    # A client sends an assistant's message back as it got it, with these empty.
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: Any = None
    function_call: Any = None
    parsed: Any = None
    """Harmless: what OpenAI's client read out of `content` for its user."""

    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "refusal": (),
        "annotations": ([],),
        "audio": (),
        "function_call": (),
    }


class ChatCompletionRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    """The current name of `max_tokens`; wins where both are given."""
    logprobs: bool | None = None
    top_logprobs: int | None = None
    """Only together with `logprobs`: so many of the likeliest tokens at each place."""

    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    """auto unless said otherwise."""
    parallel_tool_calls: bool | None = None
    """Whether there may be more than one call in an answer; true unless said otherwise."""

    # vLLM's additions.
    add_generation_prompt: bool | None = None
    """Whether the prompt ends with the opening of the assistant's turn; true unless said otherwise."""
    continue_final_message: bool | None = None
    """The output goes on with the last message; `add_generation_prompt` must be false then."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its own to those of the chat template; false unless said otherwise."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template's own."""

    # Accepted, without effect.
    metadata: dict[str, str] | None = None
    """Harmless: labels for stored completions, and none is stored."""
    safety_identifier: str | None = None
    """Harmless: see `user`."""
    prompt_cache_key: str | None = None
    """Harmless: a routing hint; prefix blocks are found by content."""

    # Refused unless they ask for what happens anyway.
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None
    chat_template: str | None = None
    documents: list[Any] | None = None
    echo: bool | None = None

    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SamplingFields.only,
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "moderation": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "prompt_cache_retention": ("in_memory",),
        "prompt_cache_options": (),
        "chat_template": (),
        "documents": ([],),
        "echo": (False,),
    }

    @property
    def completion_limit(self) -> int | None:
        """The most tokens to generate; None leaves it to the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class ResponseMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    content: str | None
    role: Literal["assistant"] = field(default_factory=lambda: "assistant")  # not a default: it is always sent
    refusal: None = field(default_factory=lambda: None)
    reasoning_content: str | None = None
    """vLLM's and DeepSeek's: what the model thought before it answered."""
    tool_calls: list[AnsweredToolCall] | None = None


class ChatChoice(Struct, frozen=True, kw_only=True):
    index: int
    message: ResponseMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None
    stop_reason: int | str | None = None
    """vLLM's: the stop string or the stop token that ended it."""


class ChatCompletion(Struct, frozen=True, kw_only=True):
    id: str
    created: int
    """Unix time, seconds."""
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: None = None
    prompt_logprobs: PromptLogprobs | None = None
    """vLLM's"""


class ChatDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(Struct, frozen=True, kw_only=True):
    delta: ChatDelta
    index: int = 0
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """One event of the stream. The usage chunk, when asked for, has no choices and comes last."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """In the first event, if they were asked for."""
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: None = None
