"""What a gateway tells an engine of ours about a request, so that no client can say it: whose it is, and how urgent.

The headers count only with a signature made with the key that both have (DESCANT_INTERNAL_KEY). The key itself never
travels, so a backend of another kind that gets the headers learns nothing that it could use.
"""

import hmac
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from descant_wire.load import CHARGE_HEADER

TENANT_HEADER: Final = "x-descant-tenant"
"""Requests of one tenant share prefix blocks and a fair share; opaque, different for every team."""
PRIORITY_HEADER: Final = "x-descant-priority"
"""The smaller number is served first, as in the field of the body."""
IDENTITY_HEADER: Final = "x-descant-identity"
"""The signature: hex of HMAC-SHA-256(key, "<tenant>\\n<priority>\\n<charge>")."""
MIN_KEY_LENGTH: Final = 16


class Identity(Struct, frozen=True):
    """Whose a request is; without a gateway nobody's."""

    tenant: str = ""
    priority: int = 0
    charge: str = ""
    """The gateway's name for it."""
    is_signed: bool = False


class NotSigned(Exception):
    """Headers that only a gateway may send, without its signature. The message is fit for a client."""


def sign(key: bytes, tenant: str, priority: int, charge: str) -> str:
    return hmac.digest(key, f"{tenant}\n{priority}\n{charge}".encode(), "sha256").hex()


def identity_headers(key: bytes, tenant: str, priority: int, charge: str) -> dict[str, str]:
    """All four, for a request to an engine."""
    return {
        TENANT_HEADER: tenant,
        PRIORITY_HEADER: str(priority),
        CHARGE_HEADER: charge,
        IDENTITY_HEADER: sign(key, tenant, priority, charge),
    }


def read_identity(headers: Mapping[str, str], key: bytes | None) -> Identity:
    """Whose the request is by its signed headers; without a key here, or any such header, nobody's.

    Raises NotSigned where there is a key and the headers are not signed with it.
    """
    charge = headers.get(CHARGE_HEADER, "")
    tenant, priority, signature = (headers.get(name) for name in (TENANT_HEADER, PRIORITY_HEADER, IDENTITY_HEADER))
    if key is None or (tenant is None and priority is None and signature is None):
        return Identity(charge=charge)
    number = int(priority) if priority and priority.lstrip("-").isdigit() and priority.isascii() else 0
    expected = sign(key, tenant or "", number, charge)
    if signature is None or not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogateescape")):
        raise NotSigned(
            f"{TENANT_HEADER} and {PRIORITY_HEADER} are a gateway's to send, signed with DESCANT_INTERNAL_KEY. "
            "(If this is a gateway: its key differs from the engine's.)"
        )
    return Identity(tenant or "", number, charge, is_signed=True)
