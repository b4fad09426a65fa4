"""Stored responses, and the conversations that they make."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import Row, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store.api_tables import responses
from descant_gateway.store.errors import NotFound
from descant_gateway.store.vault import Vault

MAX_TURNS: Final = 500


class StoredResponse(Struct, frozen=True, kw_only=True):
    """`input` and `body` are JSON: its own input items, and the response as it was answered."""

    id: str
    team_id: UUID
    previous_id: str | None
    input: bytes
    body: bytes
    created_at: datetime
    expires_at: datetime
    lease_until: datetime | None = None
    """While it is being made in the background, and a gateway is there that does so."""


_CONVERSATION: Final = text(
    "WITH RECURSIVE turns AS ("
    " SELECT id, previous_id, input, body, 0 AS age FROM responses"
    "  WHERE team_id = :team_id AND id = :id AND expires_at > now() AND lease_until IS NULL"
    " UNION ALL"
    " SELECT r.id, r.previous_id, r.input, r.body, turns.age + 1"
    "  FROM responses r JOIN turns ON r.id = turns.previous_id"
    "  WHERE r.team_id = :team_id AND r.expires_at > now() AND turns.age < :max_turns)"
    " SELECT id, previous_id, input, body FROM turns ORDER BY age DESC"
)


class Turn(Struct, frozen=True):
    input: bytes
    body: bytes


async def create(connection: AsyncConnection, vault: Vault, response: StoredResponse) -> None:
    values = asdict(response)
    values["input"] = vault.close(response.input, name=_input_of(response.id))
    values["body"] = vault.close(response.body, name=_body_of(response.id))
    await connection.execute(insert(responses).values(values))


async def renew(connection: AsyncConnection, ids: Collection[str], lease_s: float) -> set[str]:
    """Those of them that are still to be made."""
    its = (responses.c.id.in_(ids), responses.c.lease_until.is_not(None))
    until = func.now() + timedelta(seconds=lease_s)
    rows = await connection.execute(update(responses).where(*its).values(lease_until=until).returning(responses.c.id))
    return set(rows.scalars())


async def finish(connection: AsyncConnection, vault: Vault, response_id: str, body: bytes) -> bool:
    """Gives a response that is being made its last body. False if it was cancelled or deleted in the meantime."""
    return await _end(connection, vault, response_id, {"body": vault.close(body, name=_body_of(response_id))})


async def fail(connection: AsyncConnection, vault: Vault, response_id: str, body: bytes) -> bool:
    """As `finish`, for one of which nothing came: its input goes, so that what limits refuse takes no room."""
    values = {
        "body": vault.close(body, name=_body_of(response_id)),
        "input": vault.close(b"[]", name=_input_of(response_id)),
    }
    return await _end(connection, vault, response_id, values)


async def _end(connection: AsyncConnection, vault: Vault, response_id: str, values: dict[str, Any]) -> bool:
    its = (responses.c.team_id == vault.team_id, responses.c.id == response_id, responses.c.lease_until.is_not(None))
    values = values | {"lease_until": None}
    done = update(responses).where(*its).values(values).returning(responses.c.id)
    return (await connection.execute(done)).one_or_none() is not None


async def find(connection: AsyncConnection, vault: Vault, response_id: str) -> StoredResponse:
    """Raises NotFound, also for another team's; UnsealError."""
    query = select(responses).where(responses.c.team_id == vault.team_id, responses.c.id == response_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound("response", response_id)
    turn = _opened(vault, row)
    return StoredResponse(**{**row._mapping, "input": turn.input, "body": turn.body})


async def remove(connection: AsyncConnection, team_id: UUID, response_id: str) -> None:
    """Raises NotFound."""
    its = (responses.c.team_id == team_id, responses.c.id == response_id)
    gone = delete(responses).where(*its).returning(responses.c.id)
    if (await connection.execute(gone)).one_or_none() is None:
        raise NotFound("response", response_id)


async def conversation(connection: AsyncConnection, vault: Vault, response_id: str) -> list[Turn]:
    """All turns up to this one, the first first. Raises NotFound where one is not there any more; UnsealError."""
    asked = {"team_id": vault.team_id, "id": response_id, "max_turns": MAX_TURNS}
    rows = (await connection.execute(_CONVERSATION, asked)).all()
    if not rows or rows[0].previous_id is not None:
        raise NotFound("stored conversation up to the response", response_id)
    return [_opened(vault, row) for row in rows]


def _opened(vault: Vault, row: Row[Any]) -> Turn:
    return Turn(
        vault.open(bytes(row.input), name=_input_of(row.id)), vault.open(bytes(row.body), name=_body_of(row.id))
    )


def _input_of(response_id: str) -> str:
    return f"input of {response_id}"


def _body_of(response_id: str) -> str:
    return f"body of {response_id}"
