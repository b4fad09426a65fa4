"""API keys: `dsc_<public id>_<secret><checksum>`, all of it base62.

The public id (12 characters) finds the key; the secret (40 characters, 238 bits) proves it; the CRC-32 of all before it
(6 characters) lets a gateway or a secret scanner refuse a mistyped or invented key without any look-up.
Only HMAC-SHA-256(pepper, secret) is stored: a random secret this long needs no slow hash.

Format after https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/
"""

import hmac
import re
import secrets
import string
import zlib
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from descant_gateway.config import Secret

PREFIX: Final = "dsc_"
PUBLIC_ID_LENGTH: Final = 12
SECRET_LENGTH: Final = 40
CHECKSUM_LENGTH: Final = 6
ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
KEY_PATTERN: Final = re.compile(
    rf"{PREFIX}([0-9A-Za-z]{{{PUBLIC_ID_LENGTH}}})_([0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)


class MalformedKey(ValueError):
    """Not a key of ours, whatever the database says. The message never quotes the text."""


class ParsedKey(Struct, frozen=True):
    """A key as its holder presents it. `repr` hides the secret."""

    public_id: str
    secret: str

    @property
    def text(self) -> str:
        body = f"{PREFIX}{self.public_id}_{self.secret}"
        return body + checksum(body)

    def __repr__(self) -> str:
        return f"ParsedKey({PREFIX}{self.public_id}_***)"


def generate() -> ParsedKey:
    return ParsedKey(public_id=_random_text(PUBLIC_ID_LENGTH), secret=_random_text(SECRET_LENGTH))


class IssuedSecret(Struct, frozen=True):
    """A new key's text, for its holder, and what is stored of it."""

    key: ParsedKey
    secret_hmac: bytes


class KeyIssuer:
    """Makes keys whose secrets are stored under the gateway's pepper."""

    def __init__(self, pepper: Secret) -> None:
        self._pepper = pepper

    def issue(self, public_id: str | None = None) -> IssuedSecret:
        """A new key, or a further secret for the key with this public id."""
        new = generate()
        key = new if public_id is None else ParsedKey(public_id, new.secret)
        return IssuedSecret(key, hmac_secret(self._pepper.reveal(), key.secret))


def parse(text: str) -> ParsedKey:
    """Raises MalformedKey for a text that cannot be a key: wrong form or wrong checksum."""
    match = KEY_PATTERN.fullmatch(text)
    if match is None:
        raise MalformedKey(f"a key looks like {PREFIX}<public id>_<secret>")
    if checksum(text[:-CHECKSUM_LENGTH]) != match[3]:
        raise MalformedKey("the key's checksum is wrong: it was mistyped or cut off")
    return ParsedKey(public_id=match[1], secret=match[2])


def hmac_secret(pepper: str, secret: str) -> bytes:
    """What is stored of a secret: 32 bytes."""
    return hmac.digest(pepper.encode(), secret.encode(), "sha256")


def secret_matches(pepper: str, secret: str, secret_hmacs: Iterable[bytes]) -> bool:
    """True if the secret is one of those stored. Every one is compared, each in constant time."""
    presented = hmac_secret(pepper, secret)
    matched = False
    for stored in secret_hmacs:
        matched |= hmac.compare_digest(presented, stored)
    return matched


def checksum(body: str) -> str:
    """CRC-32 of the text as six base62 digits, most significant first (62^6 > 2^32)."""
    number = zlib.crc32(body.encode())
    digits = []
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


def _random_text(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
