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
