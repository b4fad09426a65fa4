"""Serves one line of a batch through the pipeline, as if its client had sent it, and judges what came back."""

import uuid
from dataclasses import replace
from typing import Final

import msgspec
import structlog
from msgspec import Raw, Struct

from descant_gateway.detached_call import Exchange, detached_call
from descant_gateway.identity.authenticate import Caller
from descant_gateway.pipeline import Gateway, serve_caller
from descant_gateway.store.batch_work import Line, LineUsage
from descant_gateway.usage.record import UsageRecord
from descant_wire.batches import BatchLineError, BatchReply, BatchResultLine
from descant_wire.errors import ApiError, server_error

MAX_FAILURES: Final = 5
"""A line that breaks backends, or only looks so, is given up after so many."""
MAX_BACKOFF_S: Final = 30.0
_REFUSED_FOR_NOW: Final = frozenset({429, 503})
_FAILED: Final = frozenset({408, 500, 502, 504})
_ENDINGS: Final = {
    "expired": BatchLineError(code="batch_expired", message="This request was not run before the batch expired."),
    "cancelled": BatchLineError(code="batch_cancelled", message="This request was not run: the batch was cancelled."),
}
_log = structlog.get_logger("descant_gateway.batches")


class LineReply(Struct, frozen=True, kw_only=True):
    status: int
    body: bytes
    retry_after_s: float | None
    record: UsageRecord | None
    """Of what it came to; None if it was never admitted."""

    @property
    def usage(self) -> LineUsage:
        """As the ledger has it; only the body tells what of it was reasoning."""
        record = self.record
        if record is None:
            return LineUsage()
        return LineUsage(
            input_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens,
            output_tokens=record.completion_tokens,
            reasoning_tokens=_reasoning_tokens(self.body),
        )

    def pause_s(self) -> float | None:
        """A limit or a backend says that the whole batch should wait; None: it need not."""
        if self.status not in _REFUSED_FOR_NOW or (self.status == 429 and self.retry_after_s is None):
            return None
        return min(MAX_BACKOFF_S, max(0.1, self.retry_after_s or 1.0))

    def backoff_s(self, num_failures: int) -> float | None:
        """When to try this line again; None: this was its last answer."""
        if self.status not in _FAILED or num_failures + 1 >= MAX_FAILURES:
            return None
        return float(min(MAX_BACKOFF_S, 2.0**num_failures))


class _Kept:
    """The line's record, instead of the ledger's writer: it is written with the answer, or not at all."""

    def __init__(self) -> None:
        self.record: UsageRecord | None = None

    def begin(self, record: UsageRecord) -> None:
        """Nothing: a line whose gateway dies is run again."""

    def append(self, record: UsageRecord) -> None:
        self.record = record


async def serve_line(line: Line, endpoint: str, caller: Caller, gateway: Gateway) -> LineReply:
    """Never raises but for cancellation: whatever it is, it is the line's answer."""
    exchange, kept = Exchange(line.body), _Kept()
    dialect = gateway.dialects.get(endpoint)
    call = detached_call(endpoint, request_id(line.batch_id, line.position), exchange, dialect)
    try:
        await serve_caller(call, caller, gateway.feed.current, replace(gateway, ledger=kept))
    except ApiError as error:
        return LineReply(status=error.status, body=error.body, retry_after_s=error.retry_after_s, record=kept.record)
    except Exception:
        _log.exception("a line of a batch failed", batch_id=line.batch_id, position=line.position)
        return LineReply(status=500, body=server_error().body, retry_after_s=None, record=kept.record)
    return LineReply(
        status=exchange.status,
        body=bytes(exchange.reply),
        retry_after_s=_retry_after_s(exchange.headers),
        record=kept.record,
    )


def result_of(line: Line, reply: LineReply) -> bytes:
    """What the output or error file says."""
    said = BatchReply(
        status_code=reply.status, request_id=request_id(line.batch_id, line.position), body=_one_line(reply.body)
    )
    result = BatchResultLine(id=_new_id(), custom_id=line.custom_id, response=said, error=None)
    return msgspec.json.encode(result)


def unanswered(batch_id: str, position: int, custom_id: str, status: str) -> bytes:
    """What the error file says of a line that was not run, by how its batch ended."""
    return msgspec.json.encode(
        BatchResultLine(id=_new_id(), custom_id=custom_id, response=None, error=_ENDINGS[status])
    )


def request_id(batch_id: str, position: int) -> str:
    """Under which the ledger has it."""
    return f"{batch_id}-{position}"


def _one_line(body: bytes) -> Raw:
    """Without line breaks, which end a line of the file."""
    try:
        return Raw(msgspec.json.format(body, indent=-1))
    except msgspec.MsgspecError:
        return Raw(msgspec.json.encode(body.decode("utf-8", "replace")))


class _Details(Struct, frozen=True):
    reasoning_tokens: int | None = None


class _Usage(Struct, frozen=True):
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    """The same, of a response."""


class _WithUsage(Struct, frozen=True):
    usage: _Usage | None = None


def _reasoning_tokens(body: bytes) -> int:
    try:
        usage = msgspec.json.decode(body, type=_WithUsage).usage
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 0
    details = usage and (usage.completion_tokens_details or usage.output_tokens_details)
    return (details and details.reasoning_tokens) or 0


def _retry_after_s(headers: dict[bytes, bytes]) -> float | None:
    try:
        return float(headers[b"retry-after"])
    except (KeyError, ValueError):
        return None


def _new_id() -> str:
    return f"batch_req_{uuid.uuid4().hex}"
