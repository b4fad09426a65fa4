"""What clients leave with the gateway (files, batches, responses), sealed before the database sees it.

Each sealed value says so by how it begins. What was stored before that was done has no such beginning and is read as it
is: it goes with its retention. JSON never begins so; a file that does was sealed, or opens for nobody.
"""

from typing import Final
from uuid import UUID

from descant_gateway.sealing import TeamCipher
from descant_gateway.store.team_keys import TeamKeys

SEALED: Final = b"\x00descant 1\x00"


class Vault:
    """One team's. `seals` is False while gateways that can't open what is sealed still run beside this one."""

    def __init__(self, cipher: TeamCipher, *, seals: bool) -> None:
        self.team_id = cipher.team_id
        self._cipher = cipher
        self._seals = seals

    def close(self, content: bytes, *, name: str) -> bytes:
        """As it is stored. It opens for this team and name only."""
        if self._seals or content.startswith(SEALED):
            return SEALED + self._cipher.seal(content, name=name)
        return content

    def open(self, stored: bytes, *, name: str) -> bytes:
        """Raises sealing.UnsealError."""
        if not stored.startswith(SEALED):
            return stored
        return self._cipher.unseal(stored[len(SEALED) :], name=name)


class Vaults:
    def __init__(self, keys: TeamKeys, *, seals: bool) -> None:
        self._keys = keys
        self._seals = seals

    async def of(self, team_id: UUID) -> Vault:
        """Asked for before a transaction begins: it may need one. Raises UnsealError, and what the database raises."""
        return Vault(await self._keys.of(team_id), seals=self._seals)
