"""One call written as a JSON object, {"name": ..., "arguments": {...}}, read as it arrives: its arguments are passed on
piece by piece as soon as the name is known."""

import json
from collections.abc import Set
from enum import Enum

from descant_engine.text.tool_calls.events import Arguments, CallStarted, Content, ToolEvent
from descant_engine.text.tool_calls.scanners import JsonValue

NAME_KEYS = ("name", "function")
ARGUMENT_KEYS = ("arguments", "parameters")
WHITESPACE = " \t\r\n"

CallNames = Set[str] | None
"""What may be called; None if any name is taken for one."""


class _In(Enum):
    """What the next character is a part of."""

    BEFORE_KEY = "before a key"
    KEY = "a key"
    BEFORE_VALUE = "before a value"
    VALUE = "a value"
    AFTER = "after the object"
    BROKEN = "no call"


class JsonCall:
    """Fed with the text from the object's opening brace on; `rest` is what followed the closing one.

    An object that is no call is given back as content when it ends, or breaks off. With `names`, calls begin with one
    of them: what does not is given back at once. `needs_arguments`: a name alone is no call. A call whose arguments are
    known ends where something follows that is no part of it, as if its last brace were there.
    """

    def __init__(self, names: CallNames = None, *, needs_arguments: bool = False) -> None:
        self._names = names
        self._needs_arguments = needs_arguments
        self.rest = ""
        self._place = _In.BEFORE_KEY
        self._seen: list[str] = []
        """Every symbol: the text that is content if this is no call."""
        self._key = ""
        self._value = JsonValue()
        self._values: dict[str, str] = {}
        self._arguments: str | None = None
        """Once they are complete; the first ones, if there are several."""
        self._is_started = False
        self._num_sent = 0

    @property
    def is_complete(self) -> bool:
        return self._place in (_In.AFTER, _In.BROKEN)

    @property
    def is_started(self) -> bool:
        """Whether its name has been passed on."""
        return self._is_started

    def feed(self, text: str) -> list[ToolEvent]:
        for index, symbol in enumerate(text):
            if self._is_cut_short_by(symbol):
                self._place = _In.AFTER
            if self.is_complete:
                self.rest = text[index:]
                break
            self._seen.append(symbol)
            self._take(symbol)
        return self._new_events()

    def finish(self) -> list[ToolEvent]:
        """The text ended within the object. What was passed on stays; what has no name is content."""
        if self.is_complete:
            return []
        self._place = _In.BROKEN
        return self._new_events()

    def _is_cut_short_by(self, symbol: str) -> bool:
        is_part = self._place is not _In.BEFORE_KEY or symbol in '",}' + WHITESPACE
        return not is_part and self._is_call and self._has_arguments

    def _take(self, symbol: str) -> None:
        match self._place:
            case _In.BEFORE_KEY:
                self._take_before_key(symbol)
            case _In.KEY:
                if self._value.take(symbol):
                    self._key = _string(self._value.text)
                    is_first = not self._values
                    is_other = is_first and self._names is not None and self._key not in NAME_KEYS
                    self._place = _In.BROKEN if is_other else _In.BEFORE_VALUE
            case _In.BEFORE_VALUE:
                self._take_before_value(symbol)
            case _In.VALUE:
                self._take_value(symbol)

    def _take_before_key(self, symbol: str) -> None:
        if self._place is _In.BROKEN:
            return
        if symbol == '"':
            self._value = JsonValue()
            self._value.take(symbol)
            self._place = _In.KEY
        elif symbol == "}":
            is_call = self._is_call and (self._has_arguments or not self._needs_arguments)
            self._place = _In.AFTER if is_call else _In.BROKEN
        elif symbol not in WHITESPACE + "," and len(self._seen) > 1:
            self._place = _In.BROKEN

    def _take_before_value(self, symbol: str) -> None:
        if symbol not in WHITESPACE + ":":
            self._value = JsonValue()
            self._place = _In.VALUE
            self._take_value(symbol)

    def _take_value(self, symbol: str) -> None:
        if self._value.is_bare and symbol in ",}" + WHITESPACE:
            self._place = _In.BEFORE_KEY
            self._keep_value()
            self._take_before_key(symbol)
        elif self._value.take(symbol):
            self._place = _In.BEFORE_KEY
            self._keep_value()

    def _keep_value(self) -> None:
        self._values[self._key] = text = self._value.text
        if self._key in ARGUMENT_KEYS and self._arguments is None:
            # Some models write their arguments as a string of JSON, and none as null.
            self._arguments = _string(text) if text.startswith('"') else text if text != "null" else "{}"
        if self._names is not None and self._key in NAME_KEYS and _string(self._value.text) not in self._names:
            self._place = _In.BROKEN

    @property
    def _is_call(self) -> bool:
        return any(self._values.get(key, "").startswith('"') for key in NAME_KEYS)

    @property
    def _has_arguments(self) -> bool:
        return self._arguments is not None

    # What can be passed on by now

    def _new_events(self) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        if self._place is _In.BROKEN and not self._is_started:
            return [Content("".join(self._seen))]
        if not self._is_started and self._may_start and (name := self._name) is not None:
            events.append(CallStarted(name))
            self._is_started = True
        if self._is_started and (arguments := self._unsent_arguments()):
            events.append(Arguments(arguments))
            self._num_sent += len(arguments)
        return events

    @property
    def _may_start(self) -> bool:
        """Until its arguments begin, it may still turn out to be no call."""
        return self._place is _In.AFTER or self._has_arguments or self._key in ARGUMENT_KEYS

    @property
    def _name(self) -> str | None:
        for key in NAME_KEYS:
            if (value := self._values.get(key, "")).startswith('"'):
                return _string(value)
        return None

    def _unsent_arguments(self) -> str:
        if self._arguments is not None:
            return self._arguments[self._num_sent :]
        if self._place is _In.VALUE and self._key in ARGUMENT_KEYS and self._value.is_object:
            return self._value.text_from(self._num_sent)
        return "{}"[self._num_sent :] if self._place is _In.AFTER else ""


def _string(literal: str) -> str:
    try:
        return str(json.loads(literal, strict=False))
    except ValueError:
        return literal.strip('"')
