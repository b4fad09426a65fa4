"""How batches begin and end: each by one gateway alone, in one transaction that holds the batch's row."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import TextClause, delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store import files
from descant_gateway.store.api_tables import batch_lines, batches, responses
from descant_gateway.store.api_tables import files as file_table
from descant_gateway.store.batch_work import result_as_stored, result_of
from descant_gateway.store.batches import ENDED, StoredBatch, counts_of
from descant_gateway.store.files import FileWriter, StoredFile
from descant_gateway.store.vault import Vault

LINES_AT_ONCE: Final = 200
SWEPT_AT_ONCE: Final = 1000
_UNCHECKED: Final = text(
    "SELECT id FROM batches WHERE status = 'validating' AND next_at <= now() AND id <> ALL (CAST(:postponed AS text[]))"
    " ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED"
)
_ENDING: Final = text(
    "SELECT id FROM batches b WHERE status IN ('in_progress', 'cancelling') AND id <> ALL (CAST(:postponed AS text[]))"
    " AND (status = 'cancelling' OR expires_at <= now()"
    "  OR NOT EXISTS (SELECT FROM batch_lines l WHERE l.batch_id = b.id AND free_at IS NOT NULL))"
    " AND NOT EXISTS (SELECT FROM batch_lines l WHERE l.batch_id = b.id AND owner IS NOT NULL AND free_at > now())"
    " ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED"
)

Unanswered = Callable[[str, int, str, str], bytes]
"""(batch, position, custom id, how the batch ended) -> what the error file says of a line that was not run."""
NewFileId = Callable[[], str]


async def next_unchecked(connection: AsyncConnection, postponed: Sequence[str] = ()) -> StoredBatch | None:
    """The one that waited longest, but for those `postponed` ones."""
    return await _locked(connection, _UNCHECKED, postponed)


async def next_ending(connection: AsyncConnection, postponed: Sequence[str] = ()) -> StoredBatch | None:
    """One that has nothing more to run, and of which nothing runs; none of those `postponed` ones."""
    return await _locked(connection, _ENDING, postponed)


async def fail(connection: AsyncConnection, batch_id: str, errors: list[dict[str, Any]]) -> None:
    """Its file is not one of a batch, or can't be begun: nothing of it runs."""
    values = {"status": "failed", "failed_at": func.now(), "errors": errors}
    await connection.execute(update(batches).where(batches.c.id == batch_id).values(values))


async def end(
    connection: AsyncConnection,
    vault: Vault,
    batch: StoredBatch,
    unanswered: Unanswered,
    new_id: NewFileId,
    keep: timedelta,
) -> str:
    """Gives it its files, which are kept for so long. Returns how it ended: completed, expired or cancelled.

    `vault` is the batch's team's. Raises UnsealError.
    """
    status = await _how(connection, batch)
    await _answer_rest(connection, vault, batch.id, status, unanswered)
    now = datetime.now(UTC)
    output, errors = (_file_of(batch, new_id(), now + keep, is_failed=is_failed) for is_failed in (False, True))
    counts = await counts_of(connection, batch.id)
    completed = await _collect(connection, vault, batch.id, output, is_failed=False)
    failed = await _collect(connection, vault, batch.id, errors, is_failed=True)
    await connection.execute(delete(batch_lines).where(batch_lines.c.batch_id == batch.id))
    values = {
        "status": status,
        f"{status}_at": func.now(),
        "output_file_id": output.id if completed else None,
        "error_file_id": errors.id if failed else None,
        **counts,
    }
    await connection.execute(update(batches).where(batches.c.id == batch.id).values(values))
    return status


async def sweep(connection: AsyncConnection, keep: timedelta) -> None:
    """Removes what has been kept long enough, some at a time."""
    for table in (responses, file_table):
        old = select(table.c.id).where(table.c.expires_at <= func.now()).limit(SWEPT_AT_ONCE)
        await connection.execute(delete(table).where(table.c.id.in_(old)))
    ended = (batches.c.status.in_(ENDED), batches.c.created_at < func.now() - keep)
    old = select(batches.c.id).where(*ended).limit(SWEPT_AT_ONCE)
    await connection.execute(delete(batches).where(batches.c.id.in_(old)))


async def _locked(connection: AsyncConnection, query: TextClause, postponed: Sequence[str]) -> StoredBatch | None:
    batch_id = (await connection.execute(query, {"postponed": list(postponed)})).scalar_one_or_none()
    if batch_id is None:
        return None
    columns = [batches.c[name] for name in StoredBatch.__struct_fields__]
    row = (await connection.execute(select(*columns).where(batches.c.id == batch_id))).one()
    return StoredBatch(**row._mapping)


async def _how(connection: AsyncConnection, batch: StoredBatch) -> str:
    if batch.status == "cancelling":
        return "cancelled"
    is_open = (batch_lines.c.batch_id == batch.id, batch_lines.c.free_at.is_not(None))
    has_rest = (await connection.execute(select(batch_lines.c.position).where(*is_open).limit(1))).first() is not None
    return "expired" if has_rest else "completed"


async def _answer_rest(
    connection: AsyncConnection, vault: Vault, batch_id: str, status: str, unanswered: Unanswered
) -> None:
    table = batch_lines.c
    its = (table.batch_id == batch_id, table.free_at.is_not(None))
    for row in (await connection.execute(select(table.position, table.custom_id).where(*its))).all():
        result = result_as_stored(
            vault, batch_id, row.position, unanswered(batch_id, row.position, row.custom_id, status)
        )
        values = {"free_at": None, "owner": None, "result": result, "is_failed": True}
        await connection.execute(update(batch_lines).where(*its, table.position == row.position).values(values))


async def _collect(
    connection: AsyncConnection, vault: Vault, batch_id: str, file: StoredFile, *, is_failed: bool
) -> int:
    """Makes the file of all such lines in their order. How many they are; no file for none."""
    writer: FileWriter | None = None
    count, last = 0, -1
    while rows := await _results(connection, batch_id, last, is_failed=is_failed):
        writer = writer or await files.create(connection, vault, file)
        for position, stored in rows:
            await writer.write(result_of(vault, batch_id, position, stored) + b"\n")
        count, last = count + len(rows), rows[-1][0]
    if writer is not None:
        await writer.close()
    return count


async def _results(
    connection: AsyncConnection, batch_id: str, after: int, *, is_failed: bool
) -> list[tuple[int, bytes]]:
    table = batch_lines.c
    wanted = table.is_failed if is_failed else ~table.is_failed
    query = select(table.position, table.result).where(table.batch_id == batch_id, table.position > after, wanted)
    rows = await connection.execute(query.order_by(table.position).limit(LINES_AT_ONCE))
    return [(row.position, bytes(row.result)) for row in rows]


def _file_of(batch: StoredBatch, file_id: str, expires_at: datetime, *, is_failed: bool) -> StoredFile:
    return StoredFile(
        id=file_id,
        team_id=batch.team_id,
        filename=f"{batch.id}_{'error' if is_failed else 'output'}.jsonl",
        purpose="batch_output",
        created_at=datetime.now(UTC),
        expires_at=expires_at,
    )
