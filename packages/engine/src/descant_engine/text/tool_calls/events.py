"""What a parser finds in a model's text, in the text's order."""

from typing import NamedTuple, Protocol


class Content(NamedTuple):
    """Text that is no part of a call."""

    text: str


class CallStarted(NamedTuple):
    """The next call; its arguments follow, and no other call's come between."""

    name: str


class Arguments(NamedTuple):
    """A further piece of the JSON text of the current call's arguments."""

    text: str


ToolEvent = Content | CallStarted | Arguments


class ToolCallParser(Protocol):
    """For one output. What it gives does not depend on how the text is cut into pieces, but for the cuts themselves."""

    def feed(self, text: str) -> list[ToolEvent]:
        """Takes the next piece of the text."""

    def finish(self) -> list[ToolEvent]:
        """What was held back: no more text will come."""


def prefix_at_end(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-length:]):
            return length
    return 0


class UntilMarker:
    """Text up to a marker, without the whitespace right before it, passed on as soon as it is certain to be that."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._blank: list[str] = []
        self._tail = ""
        """The beginning of the marker, perhaps."""

    def feed(self, text: str) -> tuple[str, str | None]:
        """What can be passed on, and what is behind the marker; None as long as that has not come."""
        text = self._tail + text
        place = text.find(self._marker)
        end = place if place >= 0 else len(text) - prefix_at_end(text, self._marker)
        passed = self._without_blank_end(text[:end])
        if place < 0:
            self._tail = text[end:]
            return passed, None
        self._blank, self._tail = [], ""
        return passed, text[place + len(self._marker) :]

    def finish(self) -> str:
        """What was held back: no more text will come."""
        held, self._blank, self._tail = "".join(self._blank) + self._tail, [], ""
        return held

    def _without_blank_end(self, text: str) -> str:
        shown = text.rstrip()
        if not shown:
            self._blank.append(text)
            return ""
        passed, self._blank = "".join(self._blank) + shown, [text[len(shown) :]]
        return passed
