"""Tells engines whose a request is: by a name that only this installation can make, signed so that no client can.

An engine seeds its prefix cache with the tenant. The name is HMAC(a key derived from the pepper, the team's id): nobody
who knows a team's id can probe its blocks, not even somebody who reaches an engine with a key of his own.
"""

import hmac
from typing import Final
from uuid import UUID

from msgspec import Struct

from descant_gateway.catalogue.snapshot import Team
from descant_gateway.config import Secret
from descant_wire.internal import identity_headers
from descant_wire.load import CHARGE_HEADER

_MAX_REMEMBERED: Final = 10_000


class TeamIdentity(Struct, frozen=True):
    """What engines and caches know a team by."""

    tenant: str
    priority: int
    """As engines count: the smaller is served first."""
    signing_key: bytes | None = None

    def headers(self, charge_id: UUID) -> dict[str, str]:
        """For a backend in the house. Without a key to sign with, an engine would not believe whose the request is."""
        if self.signing_key is None:
            return {CHARGE_HEADER: charge_id.hex}
        return identity_headers(self.signing_key, self.tenant, self.priority, charge_id.hex)


class InternalChannel:
    """Owns the names of the teams. The same on every replica, as the pepper is."""

    def __init__(self, pepper: Secret, internal_key: Secret | None) -> None:
        self._salt = hmac.digest(pepper.reveal().encode(), b"descant tenant", "sha256")
        self._signing_key = None if internal_key is None else internal_key.reveal().encode()
        self._known: dict[tuple[UUID, int], TeamIdentity] = {}

    def identity_of(self, team: Team) -> TeamIdentity:
        known = self._known.get((team.id, team.priority))
        if known is None:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            tenant = hmac.digest(self._salt, team.id.bytes, "sha256").hex()
            known = TeamIdentity(tenant, -team.priority, self._signing_key)
            self._known[team.id, team.priority] = known
        return known
