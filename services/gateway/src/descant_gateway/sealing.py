"""Encryption at rest: of the credentials that the gateway presents to others, and of what belongs to a team."""

import os
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from descant_gateway.config import Secret

NONCE_LENGTH: Final = 12
TEAM_KEY_LENGTH: Final = 32


class UnsealError(Exception):
    """The sealed bytes were changed, moved to another name, or sealed under another key."""


class Sealer:
    """AES-256-GCM under a key derived from the pepper; the sealed bytes open for the same name only."""

    def __init__(self, pepper: Secret) -> None:
        key = HKDF(SHA256(), length=32, salt=None, info=b"descant backend credentials").derive(pepper.reveal().encode())
        self._cipher = AESGCM(key)

    def seal(self, text: str, *, name: str) -> bytes:
        return _encrypt(self._cipher, text.encode(), name.encode())

    def unseal(self, sealed: bytes, *, name: str) -> str:
        """Raises UnsealError."""
        try:
            return _decrypt(self._cipher, sealed, name.encode()).decode()
        except (InvalidTag, ValueError):  # the latter for bytes that are too few
            raise UnsealError(
                f"What is stored encrypted for {name!r} doesn't open: has DESCANT_KEY_PEPPER changed?"
            ) from None


class TeamCipher:
    """AES-256-GCM under a key of one team's: a row that is copied to another team, or another name, does not open."""

    def __init__(self, team_id: UUID, key: bytes) -> None:
        self.team_id = team_id
        self._cipher = AESGCM(key)

    def seal(self, content: bytes, *, name: str) -> bytes:
        return _encrypt(self._cipher, content, self.team_id.bytes + name.encode())

    def unseal(self, sealed: bytes, *, name: str) -> bytes:
        """Raises UnsealError."""
        try:
            return _decrypt(self._cipher, sealed, self.team_id.bytes + name.encode())
        except (InvalidTag, ValueError):
            message = (
                f"What the team {self.team_id} has stored as {name!r} doesn't open: it was changed, or is another's."
            )
            raise UnsealError(message) from None


def _encrypt(cipher: AESGCM, content: bytes, bound_to: bytes) -> bytes:
    nonce = os.urandom(NONCE_LENGTH)
    return nonce + cipher.encrypt(nonce, content, bound_to)


def _decrypt(cipher: AESGCM, sealed: bytes, bound_to: bytes) -> bytes:
    return cipher.decrypt(sealed[:NONCE_LENGTH], sealed[NONCE_LENGTH:], bound_to)
