"""Who is calling: a bearer key, checked against the catalogue in memory.

No look-up leaves the process, so nothing that is away can make a good key look bad.
"""

from datetime import UTC, datetime
from ipaddress import ip_address

from msgspec import Struct

from descant_gateway import keys
from descant_gateway.catalogue import Catalogue, Key, ModelRoute, Team
from descant_gateway.errors import model_not_allowed
from descant_wire.errors import invalid_api_key, model_not_found, permission_denied

_UNKNOWN = "Incorrect API key. Check it, or ask your administrator for a new one."


class Caller(Struct, frozen=True):
    key: Key
    team: Team

    def may_use(self, model: str) -> bool:
        return _allows(self.key.allowed_models, model) and _allows(self.team.allowed_models, model)


def authenticate(authorization: bytes | None, client_address: str | None, catalogue: Catalogue, pepper: str) -> Caller:
    """The key's holder, or 401 (no such key, revoked, expired) or 403 (good key, wrong address).

    A malformed key is refused by its checksum, before any look-up. An unknown public id and a wrong secret get the same
    answer, so that ids cannot be tried out.
    """
    presented = _parse(authorization)
    key = catalogue.keys.get(presented.public_id)
    # The HMAC is computed for an unknown id too: the time of the answer says nothing about which ids exist.
    hmacs = key.secret_hmacs if key is not None else ()
    if not keys.secret_matches(pepper, presented.secret, hmacs) or key is None:
        raise invalid_api_key(_UNKNOWN)
    _require_valid(key, client_address)
    team = catalogue.teams.get(key.team_id)
    if team is None:
        raise invalid_api_key(_UNKNOWN)
    return Caller(key, team)


def permitted_model(caller: Caller, name: str, catalogue: Catalogue) -> ModelRoute:
    """The model the caller names: 404 if there is none, 403 if its key or team may not use it."""
    model = catalogue.models.get(name)
    if model is None:
        raise model_not_found(name)
    if not _allows(caller.team.allowed_models, name):
        raise model_not_allowed(name, "team")
    if not _allows(caller.key.allowed_models, name):
        raise model_not_allowed(name, "key")
    return model


def _parse(authorization: bytes | None) -> keys.ParsedKey:
    if not authorization:
        raise invalid_api_key("No API key was given. Send it as the header 'Authorization: Bearer <key>'.")
    scheme, _, text = authorization.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise invalid_api_key("The Authorization header must be 'Bearer <key>'.")
    try:
        return keys.parse(text.strip())
    except keys.MalformedKey as error:
        raise invalid_api_key(f"Incorrect API key: {error}.") from None


def _require_valid(key: Key, client_address: str | None) -> None:
    if key.revoked_at is not None:
        raise invalid_api_key("This API key was revoked.")
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        raise invalid_api_key(f"This API key expired at {key.expires_at.isoformat(timespec='seconds')}.")
    if key.ip_ranges and not _is_in_ranges(client_address, key):
        raise permission_denied(
            f"This API key may not be used from the address {client_address}.", code="ip_not_allowed"
        )


def _is_in_ranges(client_address: str | None, key: Key) -> bool:
    try:
        address = ip_address(client_address or "")
    except ValueError:
        return False
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in key.ip_ranges)


def _allows(allowed: frozenset[str] | None, model: str) -> bool:
    return allowed is None or model in allowed
