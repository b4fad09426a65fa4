"""How many events of a stream carried content: what a reply is charged by whose backend told no usage."""

import re
from typing import Final

_CONTENT: Final = re.compile(rb'"(?:content|text|reasoning_content|reasoning|arguments)"\s*:\s*"(?!")')
"""A delta that carries something; a quotation mark inside a text is escaped and can't look like this."""
_MOST_UNREAD_BYTES: Final = 8 << 10
_BETWEEN: Final = b"\0"
"""Keeps an event from being read together with the next."""


class ContentCount:
    """Most backends tell the usage, and then nobody asks; so events wait here and are read many at once, or never."""

    __slots__ = ("_num_read", "_num_unread_bytes", "_unread")

    def __init__(self) -> None:
        self._num_read = 0
        self._unread: list[bytes] = []
        self._num_unread_bytes = 0

    def add(self, events: bytes) -> None:
        """Whole events."""
        self._unread.append(events)
        self._num_unread_bytes += len(events)
        if self._num_unread_bytes > _MOST_UNREAD_BYTES:
            self._read()

    @property
    def total(self) -> int:
        """About one a token."""
        self._read()
        return self._num_read

    def _read(self) -> None:
        self._num_read += len(_CONTENT.findall(_BETWEEN.join(self._unread)))
        self._unread.clear()
        self._num_unread_bytes = 0
