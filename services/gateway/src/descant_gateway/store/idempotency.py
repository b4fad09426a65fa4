"""Replies to POSTs that carried an Idempotency-Key, for a day: the same request gets the same reply, once made."""

from datetime import timedelta
from typing import Final

from msgspec import Struct
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store.identity_tables import idempotent_replies

LIFETIME: Final = timedelta(days=1)


class Claim(Struct, frozen=True):
    """A request that was seen before, as it was then."""

    request_hash: bytes
    status: int | None
    """None while the first is under way, or if it ended without a word."""
    sealed_body: bytes | None


async def claim(connection: AsyncConnection, actor: str, key: str, request_hash: bytes) -> Claim | None:
    """None if the key is new, and now this request's."""
    table = idempotent_replies.c
    await connection.execute(delete(idempotent_replies).where(table.created_at < func.now() - LIFETIME))
    values = {"actor": actor, "idempotency_key": key, "request_hash": request_hash}
    statement = upsert(idempotent_replies).values(values).on_conflict_do_nothing().returning(table.actor)
    if (await connection.execute(statement)).one_or_none() is not None:
        return None
    query = select(table.request_hash, table.status, table.sealed_body)
    row = (await connection.execute(query.where(table.actor == actor, table.idempotency_key == key))).one()
    return Claim(row.request_hash, row.status, row.sealed_body)


async def complete(connection: AsyncConnection, actor: str, key: str, status: int, sealed_body: bytes) -> None:
    table = idempotent_replies.c
    its = update(idempotent_replies).where(table.actor == actor, table.idempotency_key == key)
    await connection.execute(its.values(status=status, sealed_body=sealed_body))


async def release(connection: AsyncConnection, actor: str, key: str) -> None:
    """The request failed and changed nothing, so it may be sent again."""
    table = idempotent_replies.c
    await connection.execute(
        delete(idempotent_replies).where(table.actor == actor, table.idempotency_key == key, table.status.is_(None))
    )
