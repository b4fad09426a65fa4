"""An output that is nothing but calls in JSON: one object, several with `;` or commas between them, or a list.

Llama 3 writes {"name": ..., "parameters": {...}}, sometimes behind <|python_tag|>; Mistral [TOOL_CALLS] and a list, or
[TOOL_CALLS]name{...}; models without a form of their own are asked for one object or a list.
"""

import re
from collections.abc import Sequence

from descant_engine.text.tool_calls.events import Arguments, CallStarted, Content, ToolEvent, prefix_at_end
from descant_engine.text.tool_calls.json_calls import WHITESPACE, CallNames, JsonCall
from descant_engine.text.tool_calls.openings import MAX_LEAD_CHARACTERS, behind_openings
from descant_engine.text.tool_calls.scanners import JsonValue

_NAMED_CALL = re.compile(r"([\w.\-]++)\s*+(?:\[CALL_ID\]\w*+)?(?:\[ARGS\])?\s*+(?=\{)")
"""Possessive, since no part can begin with the end of the part before it."""


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
        text = behind_openings(self._held, self._openings)
        has_long_lead = len(self._held) - len(text) > MAX_LEAD_CHARACTERS
        if not text and not has_long_lead:
            return False
        self._is_decided = True
        self._is_content = has_long_lead or text[0] not in "{["
        if not self._is_content:
            self._held = text
        return True

    def _read(self) -> list[ToolEvent]:
        if self._is_content:
            held, self._held = self._held, ""
            return [Content(held)]
        events: list[ToolEvent] = []
        while self._held:
            if self._call is None:
                # Between calls there are brackets, separators and the marks of a code block.
                before, brace, _ = self._held.partition("{")
                if not self._has_called and not _may_precede_calls(before):
                    self._is_content = True
                    return self._read()
                if not brace:
                    self._held = "" if self._has_called else before
                    return events
                self._before, self._held = before, self._held[len(before) :]
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


def _may_precede_calls(text: str) -> bool:
    """A list that holds something else than objects is content."""
    return len(text) <= MAX_LEAD_CHARACTERS and not text.strip("[" + WHITESPACE)


class MistralCalls:
    """Content, then [TOOL_CALLS] and a list of calls; or, as newer models write it, for each call
    [TOOL_CALLS]name{...}, perhaps with [ARGS] between."""

    marker = "[TOOL_CALLS]"

    def __init__(self) -> None:
        self._held = ""
        self._is_calling = False
        self._has_called = False
        """In the newer form."""
        self._is_no_call = False
        """Nor is there one in what follows."""
        self._list: BareJsonCalls | None = None
        self._named: _NamedCall | None = None

    def feed(self, text: str) -> list[ToolEvent]:
        if self._list is not None:
            return self._list.feed(text)
        if self._is_no_call:
            return [Content(text)] if text and not self._has_called else []
        self._held += text
        return self._read_calls() if self._is_calling else self._read_content()

    def finish(self) -> list[ToolEvent]:
        if self._list is not None:
            return self._list.finish()
        held = self._held if self._named is None else self._named.text + self._held
        self._held, self._named = "", None
        if self._has_called or self._is_no_call or not held.strip():
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
        is_first = self._named is None and not self._has_called
        if is_first and text[:1] in ("[", "{") and not text.startswith(self.marker[: len(text)]):
            self._list, self._held = BareJsonCalls(needs_arguments=False), ""
            return self._list.feed(text)
        events: list[ToolEvent] = []
        while self._held:
            if self._named is None and not self._begin_named():
                return events + (self._give_up() if len(self._held) >= MAX_LEAD_CHARACTERS else [])
            events += self._feed_named()
        return events

    def _begin_named(self) -> bool:
        """Whether what is held begins with a call of the newer form."""
        self._held = self._held.lstrip(WHITESPACE).removeprefix(self.marker).lstrip(WHITESPACE)
        if (found := _NAMED_CALL.match(self._held, 0, MAX_LEAD_CHARACTERS)) is None:
            return False
        self._named, self._held = _NamedCall(found), self._held[found.end() :]
        return True

    def _feed_named(self) -> list[ToolEvent]:
        """The call under way, once its arguments are complete."""
        assert self._named is not None
        text, self._held = self._held, ""
        if (end := self._named.arguments.take_all(text)) is None:
            return []
        call, self._named, self._held = self._named, None, text[end:]
        self._has_called = True
        return [CallStarted(call.name), Arguments(call.arguments.text)]

    def _give_up(self) -> list[ToolEvent]:
        held, self._held = self._held, ""
        self._is_no_call = True
        return [] if self._has_called else [Content(self.marker + held)]


class _NamedCall:
    def __init__(self, opening: re.Match[str]) -> None:
        self.name = opening[1]
        self.arguments = JsonValue()
        self._opening = opening[0]

    @property
    def text(self) -> str:
        """As far as it has come."""
        return self._opening + self.arguments.text
