"""Batches as their teams see them."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store.api_tables import batch_lines, batches
from descant_gateway.store.errors import Invalid, NotFound

TOKEN_COUNTS: Final = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
ENDED: Final = ("failed", "completed", "expired", "cancelled")


class StoredBatch(Struct, frozen=True, kw_only=True):
    id: str
    team_id: UUID
    key_public_id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    labels: dict[str, str] | None
    created_at: datetime
    expires_at: datetime
    output_file_id: str | None = None
    error_file_id: str | None = None
    status: str = "validating"
    errors: list[dict[str, Any]] | None = None
    num_lines: int = 0
    num_completed: int = 0
    num_failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    """Of the input's."""
    output_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the output's."""
    in_progress_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    expired_at: datetime | None = None
    cancelling_at: datetime | None = None
    cancelled_at: datetime | None = None


_COLUMNS: Final = [batches.c[name] for name in StoredBatch.__struct_fields__]


async def create(connection: AsyncConnection, batch: StoredBatch) -> None:
    await connection.execute(insert(batches).values(asdict(batch)))


async def find(connection: AsyncConnection, team_id: UUID, batch_id: str) -> StoredBatch:
    """With its counts as of now. Raises NotFound, also for another team's."""
    query = select(*_COLUMNS).where(batches.c.team_id == team_id, batches.c.id == batch_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound("batch", batch_id)
    return await _counted(connection, StoredBatch(**row._mapping))


async def page_of(connection: AsyncConnection, team_id: UUID, after: str | None, size: int) -> list[StoredBatch]:
    """Newest first; one more than the page has, if there are more."""
    query = select(*_COLUMNS).where(batches.c.team_id == team_id)
    if after is not None:
        last = select(batches.c.created_at, batches.c.id).where(batches.c.id == after).scalar_subquery()
        query = query.where(tuple_(batches.c.created_at, batches.c.id) < last)
    query = query.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(size + 1)
    rows = (await connection.execute(query)).all()
    return [await _counted(connection, StoredBatch(**row._mapping)) for row in rows]


async def cancel(connection: AsyncConnection, team_id: UUID, batch_id: str) -> StoredBatch:
    """What runs of it still ends. Raises NotFound; Invalid for one that has ended."""
    batch = await find(connection, team_id, batch_id)
    if batch.status in ENDED:
        raise Invalid(f"The batch {batch_id!r} is {batch.status} and can't be cancelled.", field="batch_id")
    waits = (batches.c.id == batch_id, batches.c.status.not_in([*ENDED, "cancelling"]))
    values = {"status": "cancelling", "cancelling_at": func.now(), "next_at": func.now()}
    await connection.execute(update(batches).where(*waits).values(values))
    return await find(connection, team_id, batch_id)


async def _counted(connection: AsyncConnection, batch: StoredBatch) -> StoredBatch:
    """Lines are counted while they are there: until the batch has ended and has its files."""
    if batch.status in ENDED or batch.status == "validating":
        return batch
    return msgspec.structs.replace(batch, **await counts_of(connection, batch.id))


async def counts_of(connection: AsyncConnection, batch_id: str) -> dict[str, int]:
    """Of the batch's columns those that are the sums of its lines."""
    answered, failed = batch_lines.c.free_at.is_(None), batch_lines.c.is_failed
    counts = select(
        func.count().filter(answered, ~failed).label("num_completed"),
        func.count().filter(answered, failed).label("num_failed"),
        *(func.coalesce(func.sum(batch_lines.c[name]), 0).label(name) for name in TOKEN_COUNTS),
    )
    row = (await connection.execute(counts.where(batch_lines.c.batch_id == batch_id))).one()
    return {name: int(count) for name, count in row._mapping.items()}
