"""Logged prompts, each sealed by its team's key."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from msgspec import Struct, structs
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store import advisory_locks
from descant_gateway.store.prompt_tables import prompt_log


class SealedPrompt(Struct, frozen=True, kw_only=True):
    team_id: UUID
    at: datetime
    key_id: UUID
    request_id: str
    model: str
    sealed_request: bytes


class StoredPrompt(SealedPrompt, frozen=True, kw_only=True):
    id: int


async def add(connection: AsyncConnection, prompts: Sequence[SealedPrompt]) -> None:
    await connection.execute(insert(prompt_log), [structs.asdict(prompt) for prompt in prompts])


async def find(connection: AsyncConnection, team_id: UUID, before_id: int | None, size: int) -> list[StoredPrompt]:
    """Newest first: at most `size` and one more, if there are more."""
    query = select(prompt_log).where(prompt_log.c.team_id == team_id).order_by(prompt_log.c.id.desc()).limit(size + 1)
    if before_id is not None:
        query = query.where(prompt_log.c.id < before_id)
    return [StoredPrompt(**row._mapping) for row in await connection.execute(query)]


async def record_reading(connection: AsyncConnection, team_id: UUID, num_read: int) -> None:
    """In the audit log, as whoever the connection acts for."""
    await connection.execute(
        text("""
            INSERT INTO audit_log (actor_kind, actor_id, actor_name, address, request, request_id, action, kind,
                                   subject, organization_id, team_id, after)
            SELECT coalesce(actor->>'kind', 'database'), actor->>'id', coalesce(actor->>'name', session_user::text),
                   actor->>'address', actor->>'request', actor->>'request_id', 'read', 'prompt_log',
                   teams.id::text, teams.organization_id, teams.id, jsonb_build_object('num_read', CAST(:num AS int))
            FROM teams,
                 (SELECT coalesce(nullif(current_setting('descant.actor', true), ''), '{}')::jsonb AS actor) AS it
            WHERE teams.id = :team_id
        """),
        {"team_id": team_id, "num": num_read},
    )


async def drop_old(connection: AsyncConnection) -> int | None:
    """Deletes what is older than its team keeps it, and all of teams that switched it off.

    How many; None if another gateway does so at this moment.
    """
    lock = text("SELECT pg_try_advisory_xact_lock(:lock)")
    locked = await connection.execute(lock, {"lock": advisory_locks.PROMPT_RETENTION})
    if not locked.scalar_one():
        return None
    deleted = await connection.execute(
        text("""
            DELETE FROM prompt_log WHERE NOT EXISTS (
                SELECT FROM teams WHERE teams.id = prompt_log.team_id
                AND prompt_log.at > now() - make_interval(days => teams.prompt_log_days))
        """)
    )
    return deleted.rowcount
