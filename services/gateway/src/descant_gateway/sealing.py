"""Encryption at rest of the credentials that the gateway must present to others: the backends' API keys."""

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from descant_gateway.config import Secret

NONCE_LENGTH: Final = 12


class UnsealError(Exception):
    """The sealed bytes were changed, moved to another name, or sealed under another pepper."""


class Sealer:
    """AES-256-GCM under a key derived from the pepper; the sealed bytes open for the same name only."""

    def __init__(self, pepper: Secret) -> None:
        key = HKDF(SHA256(), length=32, salt=None, info=b"descant backend credentials").derive(pepper.reveal().encode())
        self._cipher = AESGCM(key)

    def seal(self, text: str, *, name: str) -> bytes:
        nonce = os.urandom(NONCE_LENGTH)
        return nonce + self._cipher.encrypt(nonce, text.encode(), name.encode())

    def unseal(self, sealed: bytes, *, name: str) -> str:
        """Raises UnsealError."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_LENGTH], sealed[NONCE_LENGTH:], name.encode()).decode()
        except (InvalidTag, ValueError):  # the latter for bytes that are too few
            raise UnsealError(
                f"The stored API key of backend {name!r} doesn't open: has DESCANT_KEY_PEPPER changed?"
            ) from None
