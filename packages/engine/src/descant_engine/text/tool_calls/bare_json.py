"""An output that is nothing but calls in JSON: one object, several with `;` or commas between them, or a list.

Llama 3 writes {"name": ..., "parameters": {...}}, sometimes behind <|python_tag|>; Mistral [TOOL_CALLS] and a list, or
[TOOL_CALLS]name{...}; models without a form of their own are asked for one object or a list.
"""

import re
from collections.abc import Sequence

from descant_engine.text.tool_calls.events import Arguments, CallStarted, Content, ToolEvent, prefix_at_end
from descant_engine.text.tool_calls.json_calls import WHITESPACE, CallNames, JsonCall

_NAMED_CALL = re.compile(r"([\w.\-]+)\s*(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")


class BareJsonCalls:
    """An output that begins otherwise is content to its end."""

    def __init__(self, openings: Sequence[str] = (), names: CallNames = None, *, needs_arguments: bool = True) -> None:
        """`openings`: what may stand before the JSON, longest first. For the others see `JsonCall`: many a JSON that is
        no call has a name."""
        self._openings = openings
        self._names = names
        self._needs_arguments = needs_arguments
        self._held = ""
        self._before = ""
        """What stood before the first object: content too, if that is."""
        self._call: JsonCall | None = None
        self._is_content = False
        self._is_decided = False
        self._has_called = False

    def feed(self, text: str) -> list[ToolEvent]:
        if self._is_content:
            return [Content(text)] if text else []
        self._held += text
        if not self._is_decided and not self._decide():
            return []
        return self._read()

    def finish(self) -> list[ToolEvent]:
        if self._call is not None:
            return self._with_what_was_before(self._call, self._call.finish())
        held, self._held = self._held, ""
        return [Content(held)] if held.strip() and not self._has_called else []

    def _decide(self) -> bool:
        """Whether it is known by now what kind of output this is."""
        text = self._held.lstrip(WHITESPACE)
        for opening in self._openings:
            if text.startswith(opening):
                text = text.removeprefix(opening).lstrip(WHITESPACE)
                break
            if prefix_at_end(text, opening) == len(text):
                return False
        if not text:
            return False
        self._is_decided = True
        if text[0] in "{[":
            self._held = text
        else:
            self._is_content = True
        return True

    def _read(self) -> list[ToolEvent]:
        if self._is_content:
            held, self._held = self._held, ""
            return [Content(held)]
        events: list[ToolEvent] = []
        while self._held:
            if self._call is None:
                # Between calls there are brackets, separators and the marks of a code block.
                start = self._held.find("{")
                if start < 0:
                    return events + self._unless_call_follows()
                self._before, self._held = self._held[:start], self._held[start:]
                self._call = JsonCall(self._names, needs_arguments=self._needs_arguments)
            events += self._feed_call(self._call)
        return events

    def _feed_call(self, call: JsonCall) -> list[ToolEvent]:
        text, self._held = self._held, ""
        events = self._with_what_was_before(call, call.feed(text))
        if call.is_complete:
            self._held, self._call = call.rest, None
            self._has_called = self._has_called or call.is_started
            if not self._has_called:  # it was JSON, but no call
                self._is_content = True
                if self._held:
                    events += self._read()
        return events

    def _with_what_was_before(self, call: JsonCall, events: list[ToolEvent]) -> list[ToolEvent]:
        is_content = bool(events) and not self._has_called and not call.is_started
        return [Content(self._before), *events] if is_content and self._before else events

    def _unless_call_follows(self) -> list[ToolEvent]:
        """A list that holds something else than objects is content."""
        if self._has_called or not self._held.strip("[" + WHITESPACE):
            return []
        self._is_content = True
        return self._read()


class MistralCalls:
    """Content, then [TOOL_CALLS] and a list of calls; or, as newer models write it, for each call
    [TOOL_CALLS]name{...}, perhaps with [ARGS] between."""

    marker = "[TOOL_CALLS]"

    def __init__(self) -> None:
        self._held = ""
        self._is_calling = False
        self._has_called = False
        """In the newer form."""
        self._list: BareJsonCalls | None = None
        self._arguments: JsonCall | None = None

    def feed(self, text: str) -> list[ToolEvent]:
        if self._list is not None:
            return self._list.feed(text)
        self._held += text
        return self._read_calls() if self._is_calling else self._read_content()

    def finish(self) -> list[ToolEvent]:
        if self._list is not None:
            return self._list.finish()
        held, self._held = self._held, ""
        if self._has_called or not held.strip():
            return []
        return [Content(self.marker + held if self._is_calling else held)]

    def _read_content(self) -> list[ToolEvent]:
        place = self._held.find(self.marker)
        if place < 0:
            safe = len(self._held) - prefix_at_end(self._held, self.marker)
            content, self._held = self._held[:safe], self._held[safe:]
            return [Content(content)] if content else []
        content, self._held = self._held[:place], self._held[place + len(self.marker) :]
        self._is_calling = True
        events: list[ToolEvent] = [Content(content)] if content.strip() else []
        return events + self._read_calls()

    def _read_calls(self) -> list[ToolEvent]:
        text = self._held.lstrip(WHITESPACE)
        if not self._has_called and text[:1] in ("[", "{") and not text.startswith(self.marker[: len(text)]):
            self._list, self._held = BareJsonCalls(needs_arguments=False), ""
            return self._list.feed(text)
        events: list[ToolEvent] = []
        while (found := self._read_named()) is not None:
            events += found
        return events

    def _read_named(self) -> list[ToolEvent] | None:
        """The next call of the newer form, once its arguments are complete."""
        self._held = self._held.lstrip(WHITESPACE).removeprefix(self.marker)
        if (named := _NAMED_CALL.match(self._held)) is None:
            return None
        arguments = JsonObject(self._held[named.end() :])
        if arguments.end is None:
            return None
        text = self._held[named.end() : named.end() + arguments.end]
        self._held = self._held[named.end() + arguments.end :]
        self._has_called = True
        return [CallStarted(named[1]), Arguments(text)]


class JsonObject:
    """Where the JSON object that begins `text` ends; `end` is None if it is not complete."""

    def __init__(self, text: str) -> None:
        self.end: int | None = None
        depth, is_in_string, is_escaped = 0, False, False
        for index, symbol in enumerate(text):
            if is_escaped:
                is_escaped = False
            elif is_in_string:
                is_escaped, is_in_string = symbol == "\\", symbol != '"'
            elif symbol == '"':
                is_in_string = True
            else:
                depth += (symbol in "{[") - (symbol in "}]")
                if depth == 0:
                    self.end = index + 1
                    return
