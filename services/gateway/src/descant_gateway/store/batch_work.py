"""Batches as those see them who run them: several gateways share the work, and each line has one answer.

A line is claimed for the time of a lease, with a number that rises with every claim: whoever's claim is not the latest
any more can't answer it. Answer and charge are written in one transaction, so a line that is run twice, because its
gateway died, is charged once.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, func, insert, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store import ledger
from descant_gateway.store.api_tables import batch_lines, batches
from descant_gateway.store.vault import Vault
from descant_gateway.usage.record import UsageRecord


class Line(Struct, frozen=True, kw_only=True):
    """A claimed line."""

    batch_id: str
    position: int
    custom_id: str
    body: bytes
    """As it is stored: `body_of` opens it."""
    attempt: int
    num_failures: int


class ClaimedLines(Struct, frozen=True, kw_only=True):
    """All of one batch."""

    team_id: UUID
    key_public_id: str
    endpoint: str
    lines: list[Line]


class LineUsage(Struct, frozen=True, kw_only=True):
    """What a line's requests to backends came to."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class NewLine(Struct, frozen=True):
    position: int
    custom_id: str
    body: bytes


BEGUN_AT_ONCE: Final = 500
"""Lines: whatever else the process serves goes on between them."""
_TURN: Final = text(
    "UPDATE batches SET next_at = now() WHERE id = ("
    " SELECT id FROM batches b WHERE status = 'in_progress' AND next_at <= now() AND expires_at > now() AND EXISTS ("
    "  SELECT FROM batch_lines l WHERE l.batch_id = b.id AND l.free_at <= now())"
    " ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED)"
    " RETURNING id, team_id, key_public_id, endpoint"
)
_CLAIM: Final = text(
    "UPDATE batch_lines SET attempt = attempt + 1, owner = :owner, free_at = now() + make_interval(secs => :lease_s)"
    " WHERE batch_id = :batch_id AND position IN ("
    "  SELECT position FROM batch_lines WHERE batch_id = :batch_id AND free_at <= now()"
    "  ORDER BY position LIMIT :num_lines FOR UPDATE SKIP LOCKED)"
    " RETURNING batch_id, position, custom_id, body, attempt, num_failures"
)
_RENEW: Final = text(
    "UPDATE batch_lines l SET free_at = now() + make_interval(secs => :lease_s)"
    " FROM unnest(CAST(:batch_ids AS text[]), CAST(:positions AS int[]), CAST(:attempts AS int[]))"
    "  AS mine (batch_id, position, attempt)"
    " WHERE l.batch_id = mine.batch_id AND l.position = mine.position AND l.attempt = mine.attempt"
    " AND owner = :owner AND free_at IS NOT NULL"
)


async def claim(connection: AsyncConnection, owner: UUID, num_lines: int, lease_s: float) -> ClaimedLines | None:
    """Some lines of the batch that waited longest for its turn; None if there is nothing to do."""
    turn = (await connection.execute(_TURN)).one_or_none()
    if turn is None:
        return None
    asked = {"owner": owner, "lease_s": lease_s, "batch_id": turn.id, "num_lines": num_lines}
    rows = (await connection.execute(_CLAIM, asked)).all()
    return ClaimedLines(
        team_id=turn.team_id,
        key_public_id=turn.key_public_id,
        endpoint=turn.endpoint,
        lines=[Line(**row._mapping) for row in rows],
    )


async def renew(connection: AsyncConnection, owner: UUID, lines: Sequence[Line], lease_s: float) -> None:
    """Of these lines only: one that `owner` claimed and runs no more is free when its lease ends."""
    its = {
        "batch_ids": [line.batch_id for line in lines],
        "positions": [line.position for line in lines],
        "attempts": [line.attempt for line in lines],
    }
    await connection.execute(_RENEW, {"owner": owner, "lease_s": lease_s} | its)


def body_of(line: Line, vault: Vault) -> bytes:
    """The request. Raises UnsealError."""
    return vault.open(line.body, name=_name_of_body(line.batch_id, line.position))


def result_as_stored(vault: Vault, batch_id: str, position: int, result: bytes) -> bytes:
    return vault.close(result, name=_name_of_result(batch_id, position))


def result_of(vault: Vault, batch_id: str, position: int, stored: bytes) -> bytes:
    """Raises UnsealError."""
    return vault.open(stored, name=_name_of_result(batch_id, position))


async def answer(
    connection: AsyncConnection,
    line: Line,
    stored_result: bytes,
    record: UsageRecord | None,
    usage: LineUsage,
    *,
    is_failed: bool,
) -> bool:
    """False if somebody else has claimed the line in the meantime: then nothing is written."""
    table = batch_lines.c
    its = (table.batch_id == line.batch_id, table.position == line.position, table.attempt == line.attempt)
    values = {"free_at": None, "owner": None, "result": stored_result, "is_failed": is_failed}
    values |= msgspec.structs.asdict(usage)
    done = update(batch_lines).where(*its, table.free_at.is_not(None)).values(values).returning(table.position)
    if (await connection.execute(done)).one_or_none() is None:
        return False
    if record is not None:
        await ledger.insert_records(connection, [record])
    return True


async def put_back(connection: AsyncConnection, line: Line, wait_s: float, *, has_failed: bool) -> None:
    """To be claimed again after so long, by anybody."""
    table = batch_lines.c
    its = (table.batch_id == line.batch_id, table.position == line.position, table.attempt == line.attempt)
    values = {"owner": None, "free_at": _in(wait_s), "num_failures": table.num_failures + int(has_failed)}
    await connection.execute(update(batch_lines).where(*its, table.free_at.is_not(None)).values(values))


async def pause(connection: AsyncConnection, batch_id: str, wait_s: float) -> None:
    """No more of its lines for so long."""
    await connection.execute(update(batches).where(batches.c.id == batch_id).values(next_at=_in(wait_s)))


async def begin(connection: AsyncConnection, vault: Vault, batch_id: str, lines: Sequence[NewLine]) -> None:
    for start in range(0, len(lines), BEGUN_AT_ONCE):
        rows = [_new_row(vault, batch_id, line) for line in lines[start : start + BEGUN_AT_ONCE]]
        await connection.execute(insert(batch_lines), rows)
    values = {"status": "in_progress", "in_progress_at": func.now(), "num_lines": len(lines)}
    await connection.execute(update(batches).where(batches.c.id == batch_id).values(values))


def _new_row(vault: Vault, batch_id: str, line: NewLine) -> dict[str, object]:
    return {
        "batch_id": batch_id,
        "position": line.position,
        "custom_id": line.custom_id,
        "body": vault.close(line.body, name=_name_of_body(batch_id, line.position)),
    }


async def give_back(connection: AsyncConnection, owner: UUID) -> None:
    """All that this process runs, when it stops."""
    its = update(batch_lines).where(batch_lines.c.owner == owner, batch_lines.c.free_at.is_not(None))
    await connection.execute(its.values(owner=None, free_at=func.now()))


def _name_of_body(batch_id: str, position: int) -> str:
    return f"request {position} of {batch_id}"


def _name_of_result(batch_id: str, position: int) -> str:
    return f"result {position} of {batch_id}"


def _in(seconds: float) -> ColumnElement[datetime]:
    return func.now() + timedelta(seconds=seconds)
