"""Reads a batch's input file: JSON lines, each a request with an id of its own, all for the batch's endpoint."""

from codecs import BOM_UTF8
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from msgspec import Raw

from descant_gateway.storable import is_storable
from descant_gateway.store.batch_work import NewLine
from descant_wire.batches import BatchFault, BatchRequestLine

MAX_LINES: Final = 50_000
MAX_FAULTS: Final = 100
MAX_LINE_BYTES: Final = 8 << 20
_decoder = msgspec.json.Decoder(BatchRequestLine)


class InputFile:
    """What of a file was read so far: its requests, or what is wrong with it. Nothing of a file with faults runs."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ids: set[str] = set()
        self._num_read = 0
        self.lines: list[NewLine] = []
        self.faults: list[BatchFault] = []

    async def read(self, chunks: AsyncIterator[bytes]) -> None:
        rest = b""
        async for chunk in chunks:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                self._take(line)
            if self._has_enough(rest):
                return
        self._take(rest)
        if not self.lines and not self.faults:
            self.faults.append(BatchFault(code="empty_file", message="The input file has no requests."))

    def _has_enough(self, rest: bytes) -> bool:
        if len(rest) > MAX_LINE_BYTES:
            self._fault("invalid_json_line", f"A line is longer than {MAX_LINE_BYTES} bytes.")
        if len(self.lines) > MAX_LINES:
            self._fault("too_many_tasks", f"A batch has at most {MAX_LINES} requests.")
        return len(rest) > MAX_LINE_BYTES or len(self.lines) > MAX_LINES or len(self.faults) >= MAX_FAULTS

    def _take(self, text: bytes) -> None:
        if self._num_read == 0:
            text = text.removeprefix(BOM_UTF8)  # Windows' editors and spreadsheets write one
        self._num_read += 1
        if not text.strip():
            return
        try:
            line = _decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._fault("invalid_json_line", f"This line is not a request: {error}.")
            return
        if fault := self._fault_of(line):
            self._fault(*fault)
            return
        self._ids.add(line.custom_id)
        self.lines.append(NewLine(len(self.lines), line.custom_id, msgspec.json.encode(line.body)))

    def _fault_of(self, line: BatchRequestLine) -> tuple[str, str, str] | None:
        if line.custom_id in self._ids:
            return "duplicate_custom_id", f"The custom_id {line.custom_id!r} was used before.", "custom_id"
        if not is_storable(line.custom_id):  # no other text of a line is stored as text
            return "invalid_custom_id", f"The custom_id {line.custom_id!r} has a NUL character.", "custom_id"
        if line.method != "POST":
            return "invalid_method", f"The method is {line.method!r}; it must be POST.", "method"
        if line.url != self._endpoint:
            return "mismatched_url", f"The url is {line.url!r}; this batch is for {self._endpoint}.", "url"
        if "model" not in line.body:
            return "missing_required_parameter", "The request names no model.", "body.model"
        if bytes(line.body.get("stream", Raw(b"null"))) not in (b"false", b"null"):
            return "invalid_request", "A request of a batch can't be streamed.", "body.stream"
        if bytes(line.body.get("background", Raw(b"null"))) not in (b"false", b"null"):
            return "invalid_request", "A request of a batch runs in the background anyway.", "body.background"
        return None

    def _fault(self, code: str, message: str, param: str | None = None) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(BatchFault(code=code, message=message, param=param, line=self._num_read))
