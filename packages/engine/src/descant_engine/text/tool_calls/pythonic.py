"""Calls as a list in Python's syntax, [get_weather(city="Rome"), now()], as Llama 3.2 and 4 write them: each goes on
when it is complete. The text is parsed, never run."""

import ast
import json
from collections.abc import Sequence

from descant_engine.text.tool_calls.events import Arguments, CallStarted, Content, ToolEvent, prefix_at_end
from descant_engine.text.tool_calls.json_calls import WHITESPACE

MAX_CALL_CHARACTERS = 1 << 16
NAMES = {"true": True, "false": False, "null": None}
"""JSON's literals, which models mix up with Python's."""


class PythonicCalls:
    """An output that begins otherwise, or does not parse, is content."""

    def __init__(self, openings: Sequence[str] = ("<|python_start|>", "<|python_tag|>")) -> None:
        self._openings = openings
        self._held = ""
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
        return [] if self._is_closed or not self._held.strip() else self._give_up()

    def _open(self) -> bool:
        text = self._held.lstrip(WHITESPACE)
        for opening in self._openings:
            if text.startswith(opening):
                text = text.removeprefix(opening).lstrip(WHITESPACE)
            elif text and prefix_at_end(text, opening) == len(text):
                return False
        if not text:
            return False
        self._is_list, self._is_content = text[0] == "[", text[0] != "["
        if self._is_list:
            self._held = text[1:]
        return self._is_list

    def _next_call(self) -> list[ToolEvent] | None:
        text = self._held.lstrip(WHITESPACE + ",")
        if text.startswith("]"):
            self._is_closed, self._held = True, ""
            return None
        end = _end_of_call(text)
        if end is None:
            self._is_content = len(text) > MAX_CALL_CHARACTERS
            return None
        if (call := _read_call(text[:end])) is None:
            self._is_content = True
            return None
        self._held = text[end:]
        return call

    def _give_up(self) -> list[ToolEvent]:
        held, self._held = self._held, ""
        opening, self._is_list = "[" if self._is_list else "", False
        return [Content(opening + held)]


def _end_of_call(text: str) -> int | None:
    """Behind the parenthesis that closes the first call of `text`."""
    depth, quote, is_escaped = 0, "", False
    for index, symbol in enumerate(text):
        if is_escaped:
            is_escaped = False
        elif quote:
            is_escaped = symbol == "\\"
            quote = "" if symbol == quote else quote
        elif symbol in "\"'":
            quote = symbol
        elif symbol in "([{":
            depth += 1
        elif symbol in ")]}":
            depth -= 1
            if depth <= 0:
                return index + 1
    return None


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
