"""Chat messages to the prompt text that the model was trained on, by the template its tokenizer carries.

The template is the model's own Jinja text; transformers renders it in a sandbox.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NotRequired, TypedDict, TypeGuard

from jinja2 import Environment, TemplateError
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import Node
from jinja2.parser import Parser

from descant_engine.text.tokenizer import Tokenizer
from descant_engine.text.tool_prompt import PlainMessage, with_calls_as_content, with_tools_told

TAKEN_NAMES = frozenset(
    [
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "raise_exception",
        "strftime_now",
        "conversation",
        "chat_template",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    ]
)
"""What transformers puts into a template, and its own arguments beside the template's variables."""


OPTIONAL_KEYS = frozenset({"name", "tool_calls", "tool_call_id", "reasoning_content"})


class TextPart(TypedDict):
    """A part of a message's content, in OpenAI's form."""

    type: Literal["text"]
    text: str


class ChatMessage(TypedDict):
    """A message in OpenAI's form."""

    role: str
    content: str | Sequence[TextPart]
    name: NotRequired[str]
    tool_calls: NotRequired[Sequence[Mapping[str, Any]]]
    """What the assistant called, in OpenAI's form, but with the arguments as an object: templates write them out."""
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]


class ChatTemplateError(ValueError):
    """The messages cannot be made into a prompt: wrong in form, or refused by the model's template."""


class UnreadVariable(ChatTemplateError):
    """One of the request's variables for the template is none that it reads."""


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    template_kwargs: Mapping[str, object] = MappingProxyType({}),
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The prompt's text. It carries its special tokens: encode it with `add_special_tokens=False`.

    Args:
        continue_final_message: leave the last message open; not together with `add_generation_prompt`.
        template_kwargs: values for variables of the template's own.
        tools: in OpenAI's form. A template that does not read them has them told in a system message.

    Raises:
        ChatTemplateError: no template, no messages, a message of the wrong form (named by its index), a variable that
            the template does not read, or the template's own complaint, for example that roles must alternate.
    """
    if tokenizer.pretrained.chat_template is None:
        raise ChatTemplateError(
            "this model has no chat template; send its prompt as text (completions), or serve a chat model"
        )
    if not messages:
        raise ChatTemplateError("there are no messages; at least one is needed")
    _check_variables(tokenizer, template_kwargs)
    plain = [_with_plain_content(index, message) for index, message in enumerate(messages)]
    reads_tools = _reads_tools(tokenizer.pretrained.get_chat_template(tools=list(tools) or None))
    if not reads_tools:
        plain = with_calls_as_content(with_tools_told(plain, tools) if tools else plain)
    try:
        text = tokenizer.pretrained.apply_chat_template(
            plain,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=list(tools) if tools and reads_tools else None,
            **template_kwargs,
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise ChatTemplateError(f"the model's chat template refused the messages: {error}") from error
    return str(text)


def _check_variables(tokenizer: Tokenizer, template_kwargs: Mapping[str, object]) -> None:
    """What the template does not read would be ignored, and transformers has arguments of its own beside them."""
    if not template_kwargs:
        return
    readable = _own_variables(tokenizer.pretrained.get_chat_template())
    for name in template_kwargs:
        if name not in readable:
            known = f"; it reads {', '.join(sorted(readable))}" if readable else ""
            raise UnreadVariable(f"the model's chat template does not read chat_template_kwargs.{name}{known}")


class _GenerationTag(Extension):
    """transformers' mark around the assistant's text: it changes nothing of it."""

    tags = {"generation"}  # noqa: RUF012 - as in jinja2

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_SYNTAX = Environment(extensions=["jinja2.ext.loopcontrols", _GenerationTag])


@lru_cache(maxsize=8)
def _own_variables(template: str) -> frozenset[str]:
    """Names that the template expects from outside, without those that transformers gives it or takes for itself."""
    try:
        names = find_undeclared_variables(_SYNTAX.parse(template))
    except TemplateError as error:
        raise ChatTemplateError(f"the model's chat template cannot be read: {error}") from error
    return frozenset(name for name in names if name not in TAKEN_NAMES and not name.endswith("_token"))


def num_characters(messages: Sequence[ChatMessage]) -> int:
    """The length of the messages' content; what is malformed counts nothing, nor does what a template may leave out,
    as tools and earlier reasoning: the prompt is at least so long."""
    total = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            total += len(content)
        elif isinstance(content, Sequence):
            total += sum(len(part["text"]) for part in filter(_is_text_part, content))
    return total


@lru_cache(maxsize=8)
def _reads_tools(template: str) -> bool:
    try:
        return "tools" in find_undeclared_variables(_SYNTAX.parse(template))
    except TemplateError as error:
        raise ChatTemplateError(f"the model's chat template cannot be read: {error}") from error


def _with_plain_content(index: int, message: ChatMessage) -> PlainMessage:
    if not isinstance(message, dict):
        raise ChatTemplateError(f"messages[{index}] must be an object with role and content; got {message!r}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise ChatTemplateError(f"messages[{index}].role must be a string; got {role!r}")
    plain: PlainMessage = {"role": role, "content": _plain_content(index, content)}
    return plain | {key: value for key, value in message.items() if key in OPTIONAL_KEYS}


def _plain_content(index: int, content: object) -> str:
    """Text parts are joined by line breaks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ChatTemplateError(
            f"messages[{index}].content must be a string or a list of text parts; got {type(content).__name__}"
        )
    for position, part in enumerate(content):
        if not _is_text_part(part):
            raise ChatTemplateError(
                f"messages[{index}].content[{position}] must be {{'type': 'text', 'text': ...}}: "
                "this engine reads text only"
            )
    return "\n".join(part["text"] for part in content)


def _is_text_part(part: object) -> TypeGuard[TextPart]:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
