"""Which parser a model needs: by name, or by what its chat template says about calls."""

from collections.abc import Callable
from dataclasses import dataclass

from descant_engine.text.tool_calls.bare_json import BareJsonCalls, MistralCalls
from descant_engine.text.tool_calls.events import ToolCallParser
from descant_engine.text.tool_calls.pythonic import PythonicCalls
from descant_engine.text.tool_calls.tagged import TaggedCalls


@dataclass(frozen=True, slots=True)
class ToolCallForm:
    """How a family of models writes calls."""

    name: str
    parser: Callable[[], ToolCallParser]
    """For one output."""
    needs_special_tokens: bool = False
    """Calls are marked by special tokens, which the text must show then."""


HERMES = ToolCallForm("hermes", lambda: TaggedCalls("<tool_call>", "</tool_call>"))
LLAMA3_JSON = ToolCallForm("llama3_json", lambda: BareJsonCalls(("<|python_tag|>",)), needs_special_tokens=True)
MISTRAL = ToolCallForm("mistral", MistralCalls, needs_special_tokens=True)
PYTHONIC = ToolCallForm("pythonic", PythonicCalls, needs_special_tokens=True)
GENERIC_JSON = ToolCallForm("json", lambda: BareJsonCalls(("<tool_call>", "```json", "```")))

FORMS: dict[str, ToolCallForm] = {
    "hermes": HERMES,
    "qwen": HERMES,
    "llama3_json": LLAMA3_JSON,
    "llama4_json": LLAMA3_JSON,
    "llama4_pythonic": PYTHONIC,
    "mistral": MISTRAL,
    "pythonic": PYTHONIC,
    "json": GENERIC_JSON,
}
"""By the names that vLLM's --tool-call-parser takes, where it has one."""

_MARKS = (
    ("[TOOL_CALLS]", MISTRAL),
    ("<tool_call>", HERMES),
    ("<|python_start|>", PYTHONIC),
    ("[func_name1(params_name1", PYTHONIC),
    ("<|python_tag|>", LLAMA3_JSON),
    ('"parameters": dictionary', LLAMA3_JSON),
)
"""What templates hold that teach or repeat each form; the first one found decides."""


def form_for(chat_template: str | None) -> ToolCallForm:
    """Templates that know nothing of tools get the generic form: our own instructions ask for it."""
    for mark, form in _MARKS:
        if chat_template is not None and mark in chat_template:
            return form
    return GENERIC_JSON
