"""/v1/batches: files of requests, run when there is room.

Reference: https://platform.openai.com/docs/api-reference/batch
"""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from litestar import Request, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.identity.authenticate import Caller, permitted_endpoint
from descant_gateway.routes.access import LIMIT, Rate
from descant_gateway.storable import is_storable, require_storable
from descant_gateway.store import batches as store
from descant_gateway.store import files
from descant_gateway.store.batches import StoredBatch
from descant_gateway.store.errors import NotFound
from descant_wire.batches import Batch, BatchCounts, BatchFault, BatchFaults, BatchList, CreateBatch
from descant_wire.decoding import decode_request
from descant_wire.errors import invalid_request, not_found, unsupported_field
from descant_wire.responses import CachedTokens, ReasoningTokens, ResponseUsage

ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
WINDOW: Final = timedelta(hours=24)
_CHANGES: Final = {LIMIT: Rate(per_minute=120)}

AnyRequest = Request[object, object, State]
Wake = Callable[[], None]


@post("/v1/batches", opt=_CHANGES, status_code=200)
async def create_batch(request: AnyRequest, engine: NamedDependency[AsyncEngine], wake: NamedDependency[Wake]) -> Batch:
    """Its file is checked afterwards: `status` tells. It runs as the key that made it."""
    caller: Caller = request.state.caller
    asked = decode_request(await request.body(), CreateBatch)
    _require_served(asked, caller)
    _require_storable(asked)
    now = datetime.now(UTC)
    batch = StoredBatch(
        id=f"batch_{uuid.uuid4().hex}",
        team_id=caller.team.id,
        key_public_id=caller.key.public_id,
        endpoint=asked.endpoint,
        input_file_id=asked.input_file_id,
        completion_window=asked.completion_window,
        labels=asked.metadata,
        created_at=now,
        expires_at=now + WINDOW,
    )
    async with engine.begin() as connection:
        await _require_file(connection, batch)
        await store.create(connection, batch)
    wake()
    return shown(batch)


@get("/v1/batches")
async def list_batches(
    request: AnyRequest,
    engine: NamedDependency[AsyncEngine],
    after: FromQuery[str | None] = None,
    limit: FromQuery[int] = 20,
) -> BatchList:
    if not 1 <= limit <= 100:
        raise invalid_request("`limit` must be from 1 to 100.", param="limit")
    async with engine.begin() as connection:
        found = await store.page_of(connection, _team_id(request), after, limit)
    data = [shown(batch) for batch in found[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return BatchList(data=data, has_more=len(found) > limit, first_id=first, last_id=last)


@get("/v1/batches/{batch_id:str}")
async def show_batch(request: AnyRequest, batch_id: FromPath[str], engine: NamedDependency[AsyncEngine]) -> Batch:
    async with engine.begin() as connection:
        return shown(await store.find(connection, _team_id(request), batch_id))


@post("/v1/batches/{batch_id:str}/cancel", opt=_CHANGES, status_code=200)
async def cancel_batch(
    request: AnyRequest,
    batch_id: FromPath[str],
    engine: NamedDependency[AsyncEngine],
    wake: NamedDependency[Wake],
) -> Batch:
    """400 for one that has ended. Requests of it that run still end and are paid for."""
    async with engine.begin() as connection:
        batch = await store.cancel(connection, _team_id(request), batch_id)
    wake()
    return shown(batch)


def shown(batch: StoredBatch) -> Batch:
    faults = [msgspec.convert(fault, BatchFault) for fault in batch.errors or ()]
    return Batch(
        id=batch.id,
        endpoint=batch.endpoint,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status,
        created_at=int(batch.created_at.timestamp()),
        expires_at=int(batch.expires_at.timestamp()),
        request_counts=BatchCounts(total=batch.num_lines, completed=batch.num_completed, failed=batch.num_failed),
        errors=BatchFaults(data=faults) if faults else None,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        metadata=batch.labels,
        usage=_usage(batch),
        in_progress_at=_unix(batch.in_progress_at),
        completed_at=_unix(batch.completed_at),
        failed_at=_unix(batch.failed_at),
        expired_at=_unix(batch.expired_at),
        cancelling_at=_unix(batch.cancelling_at),
        cancelled_at=_unix(batch.cancelled_at),
    )


def _usage(batch: StoredBatch) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=batch.input_tokens,
        input_tokens_details=CachedTokens(cached_tokens=batch.cached_tokens),
        output_tokens=batch.output_tokens,
        output_tokens_details=ReasoningTokens(reasoning_tokens=batch.reasoning_tokens),
        total_tokens=batch.input_tokens + batch.output_tokens,
    )


def _require_served(asked: CreateBatch, caller: Caller) -> None:
    if asked.endpoint not in ENDPOINTS:
        message = f"`endpoint`: batches of {asked.endpoint!r} are not run here; of {', '.join(ENDPOINTS)} they are."
        raise unsupported_field(message, param="endpoint")
    if asked.output_expires_after is not None:
        message = "`output_expires_after` is not supported: the gateway's retention holds."
        raise unsupported_field(message, param="output_expires_after")
    permitted_endpoint(caller, asked.endpoint)


def _require_storable(asked: CreateBatch) -> None:
    if not is_storable(asked.input_file_id):
        raise not_found(str(NotFound("file", asked.input_file_id)), param="input_file_id")
    for name, value in (asked.metadata or {}).items():
        require_storable(name, "metadata")
        require_storable(value, "metadata")


async def _require_file(connection: AsyncConnection, batch: StoredBatch) -> None:
    try:
        await files.find(connection, batch.team_id, batch.input_file_id)
    except NotFound as error:
        raise not_found(str(error), param="input_file_id") from None


def _team_id(request: AnyRequest) -> uuid.UUID:
    caller: Caller = request.state.caller
    return caller.team.id


def _unix(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


ROUTES: Final = (create_batch, list_batches, show_batch, cancel_batch)
