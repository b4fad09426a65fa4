"""Tokens of people's sessions: what is made of them, stored of them, and what proves that a page of ours has one."""

import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final

from descant_gateway.config import Secret

PREFIX: Final = "dss_"
COOKIE: Final = "__Host-descant-session"
CSRF_HEADER: Final = "x-csrf-token"


class Sessions:
    def __init__(self, pepper: Secret, hours: float) -> None:
        self._pepper = pepper
        self.lifetime = timedelta(hours=hours)

    def new_token(self) -> str:
        """256 random bits."""
        return PREFIX + secrets.token_urlsafe(32)

    def expiry(self) -> datetime:
        """Of a session that starts now."""
        return datetime.now(UTC) + self.lifetime

    def csrf_token(self, token: str) -> str:
        """What a change must carry beside the cookie: another site's page can send that one, and not know this one."""
        message = b"csrf " + token.encode("utf-8", "surrogateescape")
        return hmac.digest(self._pepper.reveal().encode(), message, "sha256").hex()

    def is_csrf_token(self, presented: str, token: str) -> bool:
        return hmac.compare_digest(presented.encode("utf-8", "surrogateescape"), self.csrf_token(token).encode())


def token_hash(token: str) -> bytes:
    """What is stored of a session's token. It is random and long, so it needs no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
