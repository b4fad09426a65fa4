"""One call written as a JSON object, {"name": ..., "arguments": {...}}, read as it arrives: its arguments are passed on
piece by piece as soon as the name is known."""

import json
from collections.abc import Set
from enum import Enum

from descant_engine.text.tool_calls.events import Arguments, CallStarted, Content, ToolEvent

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
        self._seen = ""
        self._key = ""
        self._value = _JsonValue()
        self._values: dict[str, str] = {}
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
            self._seen += symbol
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
            self._value = _JsonValue()
            self._value.take(symbol)
            self._place = _In.KEY
        elif symbol == "}":
            is_call = self._is_call and (self._has_arguments or not self._needs_arguments)
            self._place = _In.AFTER if is_call else _In.BROKEN
        elif symbol not in WHITESPACE + "," and self._seen != "{":
            self._place = _In.BROKEN

    def _take_before_value(self, symbol: str) -> None:
        if symbol not in WHITESPACE + ":":
            self._value = _JsonValue()
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
        self._values[self._key] = self._value.text
        if self._names is not None and self._key in NAME_KEYS and _string(self._value.text) not in self._names:
            self._place = _In.BROKEN

    @property
    def _is_call(self) -> bool:
        return any(self._values.get(key, "").startswith('"') for key in NAME_KEYS)

    @property
    def _has_arguments(self) -> bool:
        return any(key in self._values for key in ARGUMENT_KEYS)

    # What can be passed on by now

    def _new_events(self) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        if self._place is _In.BROKEN and not self._is_started:
            return [Content(self._seen)]
        if not self._is_started and self._may_start and (name := self._name) is not None:
            events.append(CallStarted(name))
            self._is_started = True
        if self._is_started:
            arguments = self._arguments
            if len(arguments) > self._num_sent:
                events.append(Arguments(arguments[self._num_sent :]))
                self._num_sent = len(arguments)
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

    @property
    def _arguments(self) -> str:
        """As far as they are known; {} for a call without any."""
        for key in ARGUMENT_KEYS:
            if (value := self._values.get(key)) is not None:
                # Some models write their arguments as a string of JSON, and none as null.
                return _string(value) if value.startswith('"') else value if value != "null" else "{}"
        if self._place is _In.VALUE and self._key in ARGUMENT_KEYS and self._value.text[:1] == "{":
            return self._value.text
        return "{}" if self._place is _In.AFTER else ""


class _JsonValue:
    """Any JSON value, to its last character."""

    def __init__(self) -> None:
        self.text = ""
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    @property
    def is_bare(self) -> bool:
        """A number or a literal, which ends where something else begins."""
        return self._depth == 0 and not self._is_in_string and bool(self.text)

    def take(self, symbol: str) -> bool:
        """True if the value is complete with it."""
        self.text += symbol
        if self._is_in_string:
            self._is_in_string = self._stays_in_string(symbol)
            return not self._is_in_string and self._depth == 0
        if symbol == '"':
            self._is_in_string = True
        elif symbol in "{[":
            self._depth += 1
        elif symbol in "}]":
            self._depth -= 1
            return self._depth == 0
        return False

    def _stays_in_string(self, symbol: str) -> bool:
        ends = symbol == '"' and not self._is_escaped
        self._is_escaped = symbol == "\\" and not self._is_escaped
        return not ends


def _string(literal: str) -> str:
    try:
        return str(json.loads(literal, strict=False))
    except ValueError:
        return literal.strip('"')
