"""/admin/v1/backends: the only place upstream addresses come from."""

import re
from ipaddress import IPv6Address, ip_address
from socket import inet_aton
from typing import Annotated, Final
from urllib.parse import urlsplit

from litestar import delete, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, Meta, Struct, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.access import needs
from descant_gateway.roles import Level, Role
from descant_gateway.routes.admin.fields import Listing, Name
from descant_gateway.sealing import Sealer
from descant_gateway.store import backends as store
from descant_gateway.store.backends import BackendRow
from descant_wire.errors import ApiError, invalid_request

_LABEL: Final = re.compile(r"[0-9A-Za-z_]([0-9A-Za-z_-]{0,61}[0-9A-Za-z_])?")
"""Between the dots of a name. Names in other scripts are given as they are looked up: xn--..."""
HeaderText = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[\x21-\x7e]+$")]


class BackendSetting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    base_url: Annotated[str, Meta(min_length=1, max_length=2000)]
    """http://host:port, without /v1."""
    api_key: HeaderText | UnsetType | None = UNSET
    """Sent to the backend as its bearer; not given keeps the one that is stored, null removes it."""


@put("/backends", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def put_backend(
    data: JSONBody[BackendSetting], engine: NamedDependency[AsyncEngine], sealer: NamedDependency[Sealer]
) -> BackendRow:
    sealed = sealer.seal(data.api_key, name=data.name) if isinstance(data.api_key, str) else data.api_key
    base_url = checked_base_url(data.base_url)
    async with engine.begin() as connection:
        return await store.put(connection, data.name, base_url=base_url, sealed_api_key=sealed)


@get("/backends", opt=needs(Role.VIEWER, Level.INSTALLATION))
async def list_backends(engine: NamedDependency[AsyncEngine]) -> Listing[BackendRow]:
    async with engine.begin() as connection:
        return Listing(await store.list_all(connection))


@delete("/backends/{name:path}", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def delete_backend(name: FromPath[str], engine: NamedDependency[AsyncEngine]) -> None:
    async with engine.begin() as connection:
        await store.remove(connection, name.removeprefix("/"))


def checked_base_url(text: str) -> str:
    """The URL up to and without /v1. Raises ApiError for what is no plain http address."""
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port
    except ValueError:
        raise _bad_url("is not a URL") from None
    if url.scheme not in {"http", "https"} or not host:
        raise _bad_url("must look like http://host:port")
    if url.username is not None or url.query or url.fragment or any(char.isspace() for char in text):
        raise _bad_url("must hold no user, query, fragment or blank; give a credential as api_key")
    if not _is_host(host):
        raise _bad_url(f"has {host[:80]!r} for a host, which no name server can look up")
    if _is_link_local(host):
        raise _bad_url("is a link-local address, where clouds keep their credentials")
    return text.rstrip("/").removesuffix("/v1")


def _is_host(host: str) -> bool:
    if ":" in host:
        return True  # an IPv6 address: urlsplit has parsed it
    labels = host.removesuffix(".").split(".")
    return all(_LABEL.fullmatch(label) for label in labels)


def _is_link_local(host: str) -> bool:
    """In any form that a resolver takes for an address: 169.254.1.1 is 0xa9fe0101 and ::ffff:169.254.1.1 as well."""
    try:
        address = ip_address(inet_aton(host)) if ":" not in host else ip_address(host)
    except (ValueError, OSError):
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_link_local
    return address.is_link_local


def _bad_url(reason: str) -> ApiError:
    return invalid_request(f"base_url {reason}.", param="base_url")


ROUTES = (put_backend, list_backends, delete_backend)
