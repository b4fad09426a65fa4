"""Which parser a model needs: by name, or by what its chat template says about calls."""

from collections.abc import Callable
from dataclasses import dataclass

from descant_engine.text.tool_calls.bare_json import BareJsonCalls, MistralCalls
from descant_engine.text.tool_calls.events import ToolCallParser
from descant_engine.text.tool_calls.json_calls import CallNames
from descant_engine.text.tool_calls.pythonic import PythonicCalls
from descant_engine.text.tool_calls.tagged import TaggedCalls


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How a call is written where a grammar sees to it: a JSON object, with the name first, between two texts."""

    begin: str = ""
    """May be the text of a special token."""
    end: str = ""
    arguments_key: str = "arguments"
    is_list: bool = False
    """The calls stand in one list; otherwise each has texts of its own around it."""
    separator: str | None = None
    """Between calls that are in no list; None if there may be but one."""


@dataclass(frozen=True, slots=True)
class ToolCallForm:
    """How a family of models writes calls."""

    name: str
    make_parser: Callable[[CallNames], ToolCallParser]
    syntax: CallSyntax | None = None
    """None if no grammar can see to it."""
    needs_special_tokens: bool = False
    """Calls are marked by special tokens, which the text must show then."""

    def parser(self, names: CallNames = None) -> ToolCallParser:
        """For one output. With `names` nothing else is a call, and every call begins with its name."""
        return self.make_parser(names)


HERMES = ToolCallForm(
    "hermes",
    lambda _: TaggedCalls("<tool_call>", "</tool_call>"),
    CallSyntax("<tool_call>\n", "\n</tool_call>", separator="\n"),
)
LLAMA3_JSON = ToolCallForm(
    "llama3_json",
    lambda names: BareJsonCalls(("<|python_tag|>",), names),
    CallSyntax(arguments_key="parameters"),
    needs_special_tokens=True,
)
MISTRAL = ToolCallForm(
    "mistral", lambda _: MistralCalls(), CallSyntax("[TOOL_CALLS]", is_list=True), needs_special_tokens=True
)
PYTHONIC = ToolCallForm("pythonic", lambda _: PythonicCalls(), needs_special_tokens=True)
GENERIC_JSON = ToolCallForm(
    "json",
    lambda names: BareJsonCalls(("<tool_call>", "```json", "```"), names),
    CallSyntax(arguments_key="parameters", is_list=True),
)

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
