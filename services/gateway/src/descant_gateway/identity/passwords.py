"""Passwords of people: Argon2id, at the parameters that RFC 9106 recommends where memory is scarce (64 MiB)."""

import asyncio
from functools import cache
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 200
AT_ONCE: Final = 2
"""Each takes 64 MiB and a tenth of a second of a core: many sign-ins at once wait for one another."""


class Passwords:
    """Hashes and checks off the event loop. An unknown person costs the same time as a wrong password."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._nobody = _hash_of_nobody()
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def hash(self, password: str) -> str:
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def matches(self, password: str, stored: str | None) -> bool:
        async with self._slots:
            found = await asyncio.to_thread(self._verify, password, stored or self._nobody)
        return found and stored is not None

    def _verify(self, password: str, stored: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False


@cache
def _hash_of_nobody() -> str:
    """Of the same cost as everybody's, made once a process, before the first sign-in."""
    return PasswordHasher().hash("nobody has this password")
