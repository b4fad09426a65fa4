"""Calls as a list in Python's syntax, [get_weather(city="Rome"), now()], as Llama 3.2 and 4 write them: each goes on
when it is complete. The text is parsed, never run."""

import ast
import json
from collections.abc import Sequence

from descant_engine.text.tool_calls.events import Arguments, CallStarted, Content, ToolEvent
from descant_engine.text.tool_calls.json_calls import WHITESPACE
from descant_engine.text.tool_calls.openings import MAX_LEAD_CHARACTERS, behind_openings
from descant_engine.text.tool_calls.scanners import PythonCall

MAX_CALL_CHARACTERS = 1 << 16
"""Of one call, and what separates it from the one before; a longer one is content."""
NAMES = {"true": True, "false": False, "null": None}
"""JSON's literals, which models mix up with Python's."""


class PythonicCalls:
    """An output that begins otherwise, or does not parse, is content."""

    def __init__(self, openings: Sequence[str] = ("<|python_start|>", "<|python_tag|>")) -> None:
        self._openings = openings
        self._held = ""
        self._call = PythonCall()
        """The next one, with what separates it from the one before."""
        self._is_content = False
        self._is_list = False
        self._is_closed = False

    def feed(self, text: str) -> list[ToolEvent]:
        if self._is_closed:
            return []
        if self._is_content:
            return [Content(text)] if text else []
        self._held += text
        if not self._is_list and not self._open():
            return self._give_up() if self._is_content else []
        events: list[ToolEvent] = []
        while (call := self._next_call()) is not None:
            events += call
        return events + (self._give_up() if self._is_content else [])

    def finish(self) -> list[ToolEvent]:
        return [] if self._is_closed or not (self._call.text + self._held).strip() else self._give_up()

    def _open(self) -> bool:
        text = behind_openings(self._held, self._openings)
        has_long_lead = len(self._held) - len(text) > MAX_LEAD_CHARACTERS
        if not text and not has_long_lead:
            return False
        self._is_content = has_long_lead or text[0] != "["
        self._is_list = not self._is_content
        if self._is_list:
            self._held = text[1:]
        return self._is_list

    def _next_call(self) -> list[ToolEvent] | None:
        text, self._held = self._held, ""
        end = self._call.take_all(text)
        self._is_content = len(self._call) > MAX_CALL_CHARACTERS
        if end is None or self._is_content:
            self._held = "" if end is None else text[end:]
            return None
        return self._complete_call(text[end:])

    def _complete_call(self, rest: str) -> list[ToolEvent] | None:
        self._held = rest
        text = self._call.text.lstrip(WHITESPACE + ",")
        if text == "]":
            self._is_closed, self._held = True, ""
            return None
        if (call := _read_call(text)) is None:
            self._is_content = True
            return None
        self._call = PythonCall()
        return call

    def _give_up(self) -> list[ToolEvent]:
        held, self._held, self._call = self._call.text + self._held, "", PythonCall()
        opening, self._is_list = "[" if self._is_list else "", False
        return [Content(opening + held)]


def _read_call(text: str) -> list[ToolEvent] | None:
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            return None
        arguments = {keyword.arg: _value(keyword.value) for keyword in call.keywords}
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        return [CallStarted(ast.unparse(call.func)), Arguments(text)]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> object:
    """A literal. Raises ValueError for anything else."""
    match node:
        case ast.Name(name) if name in NAMES:
            return NAMES[name]
        case ast.List(parts) | ast.Tuple(parts):
            return [_value(part) for part in parts]
        case ast.Dict(keys, values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case _:
            return ast.literal_eval(node)


def _key(node: ast.expr | None) -> str:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        raise ValueError("keys of an object are strings")
    return node.value
