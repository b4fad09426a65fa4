"""/v1/files and /v1/batches. Reference: https://platform.openai.com/docs/api-reference/batch"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct

from descant_wire.responses import ResponseUsage


class FileObject(Struct, frozen=True, kw_only=True):
    id: str
    bytes: int
    created_at: int
    """Unix time, seconds, as all times here."""
    expires_at: int
    filename: str
    purpose: str
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"
    status_details: None = None


class DeletedFile(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileList(Struct, frozen=True, kw_only=True):
    data: list[FileObject]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: Literal["list"] = "list"


class CreateBatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    output_expires_after: Any = None


class BatchCounts(Struct, frozen=True, kw_only=True):
    total: int
    completed: int
    failed: int


class BatchFault(Struct, frozen=True, kw_only=True):
    code: str
    message: str
    line: int | None = None
    """From 1."""
    param: str | None = None


class BatchFaults(Struct, frozen=True, kw_only=True):
    data: list[BatchFault]
    object: Literal["list"] = "list"


class Batch(Struct, frozen=True, kw_only=True):
    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    created_at: int
    expires_at: int
    request_counts: BatchCounts
    usage: ResponseUsage
    """Of all its requests that have been answered so far."""
    errors: BatchFaults | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    metadata: dict[str, str] | None = None
    object: Literal["batch"] = "batch"


class BatchList(Struct, frozen=True, kw_only=True):
    data: list[Batch]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: Literal["list"] = "list"


class BatchRequestLine(Struct, frozen=True, kw_only=True):
    """One line of an input file."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: str
    url: str
    body: dict[str, Raw]


class BatchReply(Struct, frozen=True, kw_only=True):
    status_code: int
    request_id: str
    body: Raw


class BatchLineError(Struct, frozen=True, kw_only=True):
    code: str
    message: str


class BatchResultLine(Struct, frozen=True, kw_only=True):
    """One line of an output or error file: a reply, or why there is none."""

    id: str
    custom_id: str
    response: BatchReply | None
    error: BatchLineError | None
