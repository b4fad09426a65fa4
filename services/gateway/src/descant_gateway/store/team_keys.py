"""Each team's key. It is in the database, sealed by the gateway's: who deletes it there makes all that it sealed waste.

Its table says prompt_log: logged prompts were the first that it sealed.
"""

import os
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.sealing import TEAM_KEY_LENGTH, Sealer, TeamCipher
from descant_gateway.store.prompt_tables import prompt_log_keys


class TeamKeys:
    """Remembers the ciphers that it made."""

    def __init__(self, engine: AsyncEngine, sealer: Sealer) -> None:
        self._engine = engine
        self._sealer = sealer
        self._ciphers: dict[UUID, TeamCipher] = {}

    async def of(self, team_id: UUID) -> TeamCipher:
        """Made where the team has none yet, in a transaction of its own: nothing is ever sealed by a key that was
        rolled back. Raises UnsealError under another pepper, and what the database raises."""
        cipher = self._ciphers.get(team_id)
        if cipher is None:
            cipher = self._ciphers[team_id] = await self._read_or_make(team_id)
        return cipher

    async def _read_or_make(self, team_id: UUID) -> TeamCipher:
        name = f"prompt log {team_id}"
        async with self._engine.begin() as connection:
            sealed = await _find(connection, team_id)
            if sealed is None:
                new = self._sealer.seal(os.urandom(TEAM_KEY_LENGTH).hex(), name=name)
                statement = upsert(prompt_log_keys).values(team_id=team_id, sealed_key=new)
                await connection.execute(statement.on_conflict_do_nothing())
                sealed = await _find(connection, team_id)  # another gateway's, if it was quicker
        assert sealed is not None
        return TeamCipher(team_id, bytes.fromhex(self._sealer.unseal(sealed, name=name)))


async def _find(connection: AsyncConnection, team_id: UUID) -> bytes | None:
    query = select(prompt_log_keys.c.sealed_key).where(prompt_log_keys.c.team_id == team_id)
    found: bytes | None = (await connection.execute(query)).scalar_one_or_none()
    return found
