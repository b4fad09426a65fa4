"""What a key may hand on: a key that a key makes or changes never exceeds the one that makes it."""

from collections.abc import Iterable
from datetime import datetime
from ipaddress import ip_network
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from descant_gateway.identity.roles import Role
from descant_gateway.identity.scopes import INFERENCE
from descant_wire.errors import ApiError, permission_denied


class KeyRights(Struct, frozen=True, kw_only=True):
    """Everything that a key can have more or less of. None is the most, but for `role`, where it is nothing."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    allowed_models: list[str] | None = None
    """None inherits the list of the project, the team and the organization; a list may only narrow it."""
    allowed_adapters: list[str] | None = None
    """Where given, it decides about adapters in place of `allowed_models`."""
    scopes: list[str] | None = None
    """The endpoints that the key opens; None: all of /v1."""
    role: Role | None = None
    """What the key may administer; needs the scope `admin`."""
    ip_ranges: list[str] = []
    """CIDR or single addresses; empty allows every address."""
    expires_at: datetime | None = None


RightsT = TypeVar("RightsT", bound=KeyRights)


def narrowed(wanted: RightsT, creator: KeyRights) -> RightsT:
    """`wanted` within the creator's rights: what was left open becomes the creator's. 403 for what exceeds them."""
    return replace(
        wanted,
        requests_per_minute=_number("requests_per_minute", wanted.requests_per_minute, creator.requests_per_minute),
        tokens_per_minute=_number("tokens_per_minute", wanted.tokens_per_minute, creator.tokens_per_minute),
        allowed_models=_names("allowed_models", wanted.allowed_models, creator.allowed_models),
        allowed_adapters=_adapters(wanted, creator),
        scopes=_scopes(wanted.scopes, creator.scopes),
        role=_role(wanted.role, creator.role),
        ip_ranges=_ip_ranges(wanted.ip_ranges, creator.ip_ranges),
        expires_at=_expiry(wanted.expires_at, creator.expires_at),
    )


def _number(field: str, wanted: int | None, most: int | None) -> int | None:
    if wanted is not None and most is not None and wanted > most:
        raise _exceeds(field, wanted, most)
    return most if wanted is None else wanted


def _names(field: str, wanted: list[str] | None, most: list[str] | None) -> list[str] | None:
    if wanted is not None and most is not None:
        _require_no_more(field, wanted, most)
    return most if wanted is None else wanted


def _adapters(wanted: KeyRights, creator: KeyRights) -> list[str] | None:
    """Without a list of adapters it is the list of models that bounds them, on either side."""
    most = creator.allowed_models if creator.allowed_adapters is None else creator.allowed_adapters
    if wanted.allowed_adapters is not None:
        _require_no_more("allowed_adapters", wanted.allowed_adapters, most)
        return wanted.allowed_adapters
    if wanted.allowed_models is not None and creator.allowed_adapters is not None:
        return [name for name in wanted.allowed_models if name in creator.allowed_adapters]
    return creator.allowed_adapters


def _scopes(wanted: list[str] | None, most: list[str] | None) -> list[str] | None:
    """A key without a list has no `admin`, so one that makes keys always has a list."""
    if wanted is None:
        return None if most is None else sorted(set(most) & INFERENCE)
    _require_no_more("scopes", wanted, sorted(INFERENCE) if most is None else most)
    return wanted


def _role(wanted: Role | None, most: Role | None) -> Role | None:
    if wanted is not None and (most is None or not most.covers(wanted)):
        raise _exceeds("role", wanted, most)
    return wanted


def _ip_ranges(wanted: list[str], most: list[str]) -> list[str]:
    if not wanted or not most:
        return wanted or most
    outer = [ip_network(text) for text in most]
    for text in wanted:
        network = ip_network(text)
        if not any(network.version == it.version and network.subnet_of(it) for it in outer):  # type: ignore[arg-type]
            raise _exceeds("ip_ranges", text, ", ".join(most))
    return wanted


def _expiry(wanted: datetime | None, latest: datetime | None) -> datetime | None:
    if wanted is not None and latest is not None and wanted > latest:
        raise _exceeds("expires_at", wanted.isoformat(), latest.isoformat())
    return latest if wanted is None else wanted


def _require_no_more(field: str, wanted: Iterable[str], most: Iterable[str] | None) -> None:
    if most is None:
        return
    more = sorted(set(wanted) - set(most))
    if more:
        raise _exceeds(field, ", ".join(more), ", ".join(most) or "nothing")


def _exceeds(field: str, wanted: object, most: object) -> ApiError:
    return permission_denied(
        f"{field}: {wanted} exceeds the key that asks, which has {most or 'none'}.", code="exceeds_creator"
    )
