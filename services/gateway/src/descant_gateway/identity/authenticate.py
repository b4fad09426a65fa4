"""Who is calling: a bearer key, checked against the catalogue in memory.

No look-up leaves the process, so nothing that is away can make a good key look bad.
"""

from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address

from msgspec import Struct

from descant_gateway.catalogue.snapshot import Catalogue, EndingSecret, Key, ModelRoute, Organization, Project, Team
from descant_gateway.errors import model_not_allowed
from descant_gateway.identity import keys
from descant_gateway.identity.scopes import scope_of
from descant_wire.errors import invalid_api_key, model_not_found, permission_denied

_UNKNOWN = "Incorrect API key. Check it, or ask your administrator for a new one."

IpRanges = tuple[IPv4Network | IPv6Network, ...]


class Caller(Struct, frozen=True):
    """A key's holder, with all that the key belongs to."""

    key: Key
    team: Team
    organization: Organization | None = None
    project: Project | None = None

    def may_use(self, model: ModelRoute) -> bool:
        return self.forbidding_level(model) is None

    def forbidding_level(self, model: ModelRoute) -> str | None:
        """The highest level whose list lacks the model; None if all allow it."""
        if self.organization is not None and not self.organization.allowed.allows(model):
            return "organization"
        if not self.team.allowed.allows(model):
            return "team"
        if self.project is not None and not self.project.allowed.allows(model):
            return "project"
        return None if self.key.allowed.allows(model) else "key"


def authenticate(authorization: bytes | None, client_address: str | None, catalogue: Catalogue, pepper: str) -> Caller:
    """The key's holder, or 401 (no such key, revoked, expired) or 403 (good key, wrong address).

    A malformed key is refused by its checksum, before any look-up. An unknown public id and a wrong secret get the same
    answer, so that ids cannot be tried out.
    """
    presented = parse_bearer(authorization)
    key = catalogue.keys.get(presented.public_id)
    # The HMAC is computed for an unknown id too: the time of the answer says nothing about which ids exist.
    hmacs = () if key is None else valid_hmacs(key.secret_hmacs, key.ending_secrets)
    if not keys.secret_matches(pepper, presented.secret, hmacs) or key is None:
        raise invalid_api_key(_UNKNOWN)
    require_address(key.ip_ranges, client_address)
    return _caller(key, catalogue)


def holder_of(public_id: str, catalogue: Catalogue) -> Caller:
    """Whoever left work with this key before, for doing it now. 401 if the key is not valid any more."""
    key = catalogue.keys.get(public_id)
    if key is None:
        raise invalid_api_key("The API key that this was left with does not exist any more.")
    return _caller(key, catalogue)


def _caller(key: Key, catalogue: Catalogue) -> Caller:
    require_valid(key.revoked_at, key.expires_at)
    team = catalogue.teams.get(key.team_id)
    if team is None:
        raise invalid_api_key(_UNKNOWN)
    project = None if key.project_id is None else catalogue.projects.get(key.project_id)
    return Caller(key, team, catalogue.organizations.get(team.organization_id), project)


def permitted_endpoint(caller: Caller, path: str) -> None:
    """403 for an endpoint that the key's scopes don't name."""
    scopes = caller.key.scopes
    if scopes is None or (scope := scope_of(path)) in scopes:
        return
    needed = f"the scope {scope.value!r}" if scope else "a key without a list of scopes"
    raise permission_denied(f"This API key does not open {path}, which needs {needed}.", code="scope_missing")


def permitted_model(caller: Caller, name: str, catalogue: Catalogue) -> ModelRoute:
    """The model the caller names: 404 if there is none, 403 if a level of its key's path does not allow it."""
    model = catalogue.models.get(name)
    if model is None:
        raise model_not_found(name)
    level = caller.forbidding_level(model)
    if level is not None:
        raise model_not_allowed(name, level)
    return model


def parse_bearer(authorization: bytes | None) -> keys.ParsedKey:
    """Raises 401 for what is not a key of ours, without any look-up."""
    if not authorization:
        raise invalid_api_key("No API key was given. Send it as the header 'Authorization: Bearer <key>'.")
    scheme, _, text = authorization.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise invalid_api_key("The Authorization header must be 'Bearer <key>'.")
    try:
        return keys.parse(text.strip())
    except keys.MalformedKey as error:
        raise invalid_api_key(f"Incorrect API key: {error}.") from None


def valid_hmacs(lasting: tuple[bytes, ...], ending: tuple[EndingSecret, ...]) -> tuple[bytes, ...]:
    """Those of the secrets that are valid at this moment: a rotated one ends on time, whoever is away."""
    if not ending:
        return lasting
    now = datetime.now(UTC)
    return (*lasting, *(secret.secret_hmac for secret in ending if secret.not_after > now))


def require_valid(revoked_at: datetime | None, expires_at: datetime | None) -> None:
    """401 for a key that was good once."""
    if revoked_at is not None:
        raise invalid_api_key("This API key was revoked.")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise invalid_api_key(f"This API key expired at {expires_at.isoformat(timespec='seconds')}.")


def require_address(ip_ranges: IpRanges, client_address: str | None) -> None:
    """403 from an address outside the key's ranges, if it has any."""
    if ip_ranges and not _is_in_ranges(client_address, ip_ranges):
        message = f"This API key may not be used from the address {client_address}."
        raise permission_denied(message, code="ip_not_allowed")


def _is_in_ranges(client_address: str | None, ip_ranges: IpRanges) -> bool:
    try:
        address = ip_address(client_address or "")
    except ValueError:
        return False
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in ip_ranges)
