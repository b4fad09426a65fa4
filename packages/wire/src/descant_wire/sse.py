"""Server-sent events as OpenAI's API streams them: `data: <json>` lines, an empty line after each, `[DONE]` last.

The decoder follows https://html.spec.whatwg.org/multipage/server-sent-events.html (LF, CR and CRLF; comments; several
data lines; a byte order mark), works on bytes, and takes them in any pieces.
"""

from typing import NamedTuple

MEDIA_TYPE = "text/event-stream"
DONE_DATA = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"
DEFAULT_MAX_EVENT_BYTES = 16 << 20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    data: bytes
    """The data lines, joined by a line feed."""
    event: bytes = b""
    """The event field; empty where the stream gives none, as OpenAI's does."""

    @property
    def is_done(self) -> bool:
        return self.data == DONE_DATA


class SseTooLarge(ValueError):
    """One event exceeds the decoder's limit."""


def encode_event(data: bytes) -> bytes:
    """One event of one line, as JSON is. Line breaks in `data` are the caller's mistake and are not looked for."""
    return b"data: " + data + b"\n\n"


class SseDecoder:
    """Bytes in, whole events out. An unfinished event at the end of a stream is no event (as the standard says).

    Raises:
        SseTooLarge: from `feed`, when one event holds more than `max_event_bytes`.
    """

    def __init__(self, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line_pieces: list[bytes] = []
        self._data_lines: list[bytes] = []
        self._event = b""
        self._num_pending_bytes = 0
        self._after_carriage_return = False
        self._at_first_line = True

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that `chunk` completes, in order."""
        if not chunk:
            return []
        if self._after_carriage_return:
            # A CRLF cut in two: the CR has ended the line already.
            self._after_carriage_return = False
            chunk = chunk.removeprefix(b"\n")
        events: list[SseEvent] = []
        for piece in chunk.splitlines(keepends=True):
            self._count(len(piece))
            self._line_pieces.append(piece)
            if piece.endswith((b"\n", b"\r")):
                self._take_line(self._join_line(), events)
        self._after_carriage_return = chunk.endswith(b"\r")
        return events

    def _count(self, num_bytes: int) -> None:
        self._num_pending_bytes += num_bytes
        if self._num_pending_bytes > self._max_event_bytes:
            raise SseTooLarge(f"a server-sent event exceeds {self._max_event_bytes} bytes")

    def _join_line(self) -> bytes:
        line = b"".join(self._line_pieces).rstrip(b"\r\n")
        self._line_pieces.clear()
        if self._at_first_line:
            self._at_first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        return line

    def _take_line(self, line: bytes, events: list[SseEvent]) -> None:
        if not line:
            if self._data_lines:
                events.append(SseEvent(b"\n".join(self._data_lines), self._event))
            self._start_event()
            return
        # A comment starts with a colon: its field name is empty, and unknown names are ignored.
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data_lines.append(value)
        elif name == b"event":
            self._event = value

    def _start_event(self) -> None:
        self._data_lines.clear()
        self._event = b""
        self._num_pending_bytes = 0
