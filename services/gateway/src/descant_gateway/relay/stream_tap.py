"""Looks into a stream on its way through: takes its usage, counts its content, hides what was not asked for."""

import re
from typing import Final

from descant_gateway.usage.meter import Meter, usage_of_chunk
from descant_wire.sse import SseDecoder

_MAX_PENDING_BYTES: Final = 16 << 20
_LONGEST_CUT_END: Final = len(b"\r\n\r")
"""Bytes of an event's end that an earlier chunk may hold."""
_EVENT: Final = re.compile(rb".*?(?:\r\n\r\n|\n\n)", re.DOTALL)


class EventTooLarge(ValueError):
    """The backend's stream has no end of an event within 16 MiB."""


class StreamTap:
    """Bytes in, whole events out, each as the backend wrote it, as soon as it is complete."""

    __slots__ = ("_hides_usage", "_meter", "_pending")

    def __init__(self, meter: Meter, *, hides_usage: bool) -> None:
        self._meter = meter
        self._hides_usage = hides_usage
        self._pending = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """What the client may have now; empty while an event is unfinished."""
        pending = self._pending
        if not pending and chunk.endswith(b"\n\n"):
            return self._pass_on(chunk)
        # Only an end that the chunk completes is new: looking at all again would be quadratic in a long event.
        start = max(0, len(pending) - _LONGEST_CUT_END)
        pending += chunk
        end = _end_of_events(pending, start)
        if len(pending) - end > _MAX_PENDING_BYTES:
            raise EventTooLarge("The backend sent an event that does not end.")
        complete = bytes(pending[:end])
        del pending[:end]
        return self._pass_on(complete)

    def finish(self) -> bytes:
        """What the stream left unfinished, for a backend that forgets the last empty line."""
        rest = bytes(self._pending)
        self._pending.clear()
        return self._pass_on(rest)

    def _pass_on(self, events: bytes) -> bytes:
        if tells_usage(events):
            events = b"".join(event for event in _split(events) if self._keeps(event))
        self._meter.content.add(events)
        return events

    def _keeps(self, event: bytes) -> bool:
        """Takes the event's usage. The usage chunk is the one without choices."""
        for decoded in SseDecoder().feed(event):
            chunk = usage_of_chunk(decoded.data)
            if chunk.usage is not None:
                self._meter.usage = chunk.usage
                return not self._hides_usage or chunk.has_content
        return True


def tells_usage(events: bytes) -> bool:
    """Perhaps: then they are to be looked at one by one."""
    return b'"usage"' in events and events.count(b'"usage"') > events.count(b'"usage":null')


def _end_of_events(data: bytearray, start: int) -> int:
    """Where the last complete event ends, if it ends after `start`; else 0."""
    line_feeds, both = data.rfind(b"\n\n", start), data.rfind(b"\r\n\r\n", start)
    return max(line_feeds + 2 if line_feeds >= 0 else 0, both + 4 if both >= 0 else 0)


def _split(events: bytes) -> list[bytes]:
    whole = _EVENT.findall(events)
    rest = events[sum(map(len, whole)) :]
    return [*whole, rest + b"\n\n"] if rest else whole
