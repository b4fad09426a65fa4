"""What crosses the border between the front process and the engine process: msgpack frames over a stream socket.

The front speaks `ToEngine`, the engine `ToFront`. A frame is a length (4 bytes, big-endian) and a message.
"""

import struct
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.config import EngineConfig, ResolvedConfig
from descant_engine.request import EngineRequest, TokenDelta
from descant_engine.scheduler.stats import SchedulerStats


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Configure(_Message, frozen=True):
    """The first message: load this model."""

    config: EngineConfig


class UseVocabulary(_Message, frozen=True):
    """Before the first request with a grammar: the bytes of every token, empty for special ones."""

    tokens: tuple[bytes, ...]


class Submit(_Message, frozen=True):
    request: EngineRequest


class Abort(_Message, frozen=True):
    request_id: str


class RegisterAdapter(_Message, frozen=True):
    """Answered by AdapterAnswer."""

    manifest: AdapterManifest


class RemoveAdapter(_Message, frozen=True):
    digest: str


class Shutdown(_Message, frozen=True):
    """The last message: end now, whatever is unfinished."""


ToEngine = Configure | UseVocabulary | Submit | Abort | RegisterAdapter | RemoveAdapter | Shutdown


class Ready(_Message, frozen=True):
    """The answer to Configure."""

    config: ResolvedConfig
    num_blocks: int
    stats: SchedulerStats


class Deltas(_Message, frozen=True):
    """What one step gave."""

    deltas: list[TokenDelta]


class Refusal(StrEnum):
    NEVER_FITS = "never_fits"
    QUEUE_FULL = "queue_full"
    GRAMMAR = "grammar"
    """Impossible, unsupported, or too complex."""
    FAILED = "failed"
    """Not the request's fault."""


class SubmitRefused(_Message, frozen=True):
    """Nothing more will come for this request."""

    request_id: str
    refusal: Refusal
    text: str


class AdapterAnswer(_Message, frozen=True):
    digest: str
    refusal: str | None
    """Why the engine cannot serve the adapter; None if it can."""


class Stats(_Message, frozen=True):
    """Sent when something has changed, a few times a second at most."""

    stats: SchedulerStats


class Fatal(_Message, frozen=True):
    """The last message of an engine that cannot go on."""

    text: str


ToFront = Ready | Deltas | SubmitRefused | AdapterAnswer | Stats | Fatal

_LENGTH = struct.Struct(">I")
MessageT = TypeVar("MessageT")


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} cannot cross the process border")


def _decode_path(kind: type, value: Any) -> Any:
    if issubclass(kind, Path):
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} cannot cross the process border")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_path)


def frame(message: ToEngine | ToFront) -> bytes:
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class FrameReader(Generic[MessageT]):
    """Cuts a byte stream into messages. Bytes in, messages out; it does no reading itself."""

    def __init__(self, decoder: "msgspec.msgpack.Decoder[MessageT]") -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[MessageT]:
        """The messages that are complete with `data`."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) >= start + _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                payload = bytes(self._buffer[start + _LENGTH.size : end])
                start = end
                yield self._decoder.decode(payload)
        finally:
            del self._buffer[:start]


def engine_reader() -> FrameReader[ToEngine]:
    """For the engine process, of what the front sends."""
    return FrameReader(msgspec.msgpack.Decoder(ToEngine, dec_hook=_decode_path))


def front_reader() -> FrameReader[ToFront]:
    """For the front process, of what the engine sends."""
    return FrameReader(msgspec.msgpack.Decoder(ToFront, dec_hook=_decode_path))
