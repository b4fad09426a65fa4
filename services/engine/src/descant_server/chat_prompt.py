"""From the wire's messages to the engine's: what the model's chat template is given."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from descant_engine.frontend import Chat
from descant_engine.text import chat_template
from descant_server.tools import arguments_object, for_template
from descant_wire.chat import ChatMessage
from descant_wire.errors import invalid_request
from descant_wire.tools import Tool, ToolCall


class PromptOptions(Protocol):
    """What requests with messages say about their prompt; None is the default."""

    @property
    def add_generation_prompt(self) -> bool | None: ...

    @property
    def continue_final_message(self) -> bool | None: ...

    @property
    def add_special_tokens(self) -> bool | None: ...

    @property
    def chat_template_kwargs(self) -> Mapping[str, Any] | None: ...


def chat_prompt(messages: Sequence[ChatMessage], options: PromptOptions, tools: Sequence[Tool]) -> Chat:
    """Raises ApiError 400 for options that don't go together, or a call of an earlier turn that is no JSON."""
    add_generation_prompt = options.add_generation_prompt is not False
    if options.continue_final_message and add_generation_prompt:
        raise invalid_request(
            "`continue_final_message` needs `add_generation_prompt` to be false: the last message either stays open or"
            " is followed by a new turn.",
            param="continue_final_message",
        )
    return Chat(
        [_chat_message(message, f"messages[{index}]") for index, message in enumerate(messages)],
        add_generation_prompt=add_generation_prompt,
        continue_final_message=bool(options.continue_final_message),
        template_kwargs=options.chat_template_kwargs or {},
        tools=for_template(tools),
        add_special_tokens=bool(options.add_special_tokens),
    )


def _chat_message(message: ChatMessage, path: str) -> chat_template.ChatMessage:
    # OpenAI renamed "system" for its newer models; no open model's template knows the new name.
    role = "system" if message.role == "developer" else message.role
    content: str | list[chat_template.TextPart]
    if isinstance(message.content, list):
        content = [{"type": "text", "text": part.text} for part in message.content]
    else:
        content = message.content or ""
    plain: chat_template.ChatMessage = {"role": role, "content": content}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_calls:
        plain["tool_calls"] = [
            _tool_call(call, f"{path}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    return plain


def _tool_call(call: ToolCall, path: str) -> dict[str, object]:
    arguments = arguments_object(call.function.arguments, f"{path}.function.arguments")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
