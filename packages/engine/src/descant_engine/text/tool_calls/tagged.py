"""Calls as JSON objects between two tags, with content around them: Hermes and Qwen write
<tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

from descant_engine.text.tool_calls.events import Content, ToolEvent, UntilMarker
from descant_engine.text.tool_calls.json_calls import WHITESPACE, JsonCall


class TaggedCalls:
    def __init__(self, begin: str, end: str) -> None:
        self._begin, self._end = begin, end
        self._held = ""
        """Text that is not understood yet."""
        self._outside = UntilMarker(begin)
        """The line breaks before a call are no content."""
        self._call: JsonCall | None = None
        self._is_inside = False
        self._is_empty = False
        """There was no call between these tags yet."""
        self._is_refused = False
        """Nor is there one: they are content, with what is between them."""
        self._has_called = False

    def feed(self, text: str) -> list[ToolEvent]:
        self._held += text
        events: list[ToolEvent] = []
        while (found := self._advance()) is not None:
            events += found
        return events

    def finish(self) -> list[ToolEvent]:
        if self._call is not None:
            events = self._call.finish()
            return events if self._call.is_started or not self._is_empty else self._given_back(events)
        held, self._held = self._outside.finish() + self._held, ""
        if self._is_inside and not held.strip():
            return []
        return self._content(self._begin + held if self._is_inside and self._is_empty else held)

    def _advance(self) -> list[ToolEvent] | None:
        """What the held text gives next; None if more of it is needed."""
        if self._call is not None:
            return self._advance_call(self._call)
        return self._advance_inside() if self._is_inside else self._advance_outside()

    def _advance_outside(self) -> list[ToolEvent] | None:
        if not self._held:
            return None
        content, behind = self._outside.feed(self._held)
        self._held = behind or ""
        if behind is not None:
            self._is_inside, self._is_empty, self._is_refused = True, True, False
        return [Content(content)] if content else []

    def _advance_inside(self) -> list[ToolEvent] | None:
        self._held = self._held.lstrip(WHITESPACE)
        if self._held.startswith("{") and not self._is_refused:
            self._call = JsonCall()
            return []
        if (place := self._held.find(self._end)) < 0:
            return None
        between, self._held = self._held[:place], self._held[place + len(self._end) :]
        self._is_inside = False
        return [Content(self._begin + between + self._end)] if self._is_empty and between else []

    def _advance_call(self, call: JsonCall) -> list[ToolEvent] | None:
        if not self._held:
            return None
        text, self._held = self._held, ""
        events = call.feed(text)
        if not call.is_complete:
            return events
        self._call = None
        if not call.is_started:
            self._is_refused = True
            self._held = "".join(event.text for event in events if isinstance(event, Content)) + call.rest
            return []
        self._has_called, self._is_empty = True, False
        self._held = call.rest
        return events

    def _given_back(self, events: list[ToolEvent]) -> list[ToolEvent]:
        return [Content(self._begin), *events]

    def _content(self, text: str) -> list[ToolEvent]:
        """Between calls and after them there is nothing but whitespace, as a rule."""
        if not text or (self._has_called and not text.strip()) or (self._is_inside and not text.strip()):
            return []
        return [Content(text)]
