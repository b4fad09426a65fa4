"""/admin/v1/backends: the only place upstream addresses come from."""

from typing import Annotated

from litestar import delete, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, Meta, Struct, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.catalogue.entries import END
from descant_gateway.catalogue.snapshot import Protocol
from descant_gateway.egress.address import normal_base_url
from descant_gateway.identity.roles import Level, Role
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.fields import Listing, Name
from descant_gateway.sealing import Sealer
from descant_gateway.store import backends as store
from descant_gateway.store.backends import BackendRow
from descant_wire.errors import invalid_request

HeaderText = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[\x21-\x7e]+" + END)]


class BackendSetting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    base_url: Annotated[str, Meta(min_length=1, max_length=2000)]
    """http://host:port, without /v1."""
    api_key: HeaderText | UnsetType | None = UNSET
    """How the backend knows the gateway; not given keeps the one that is stored, null removes it."""
    protocol: Protocol = Protocol.OPENAI
    external: bool = False
    """Outside the house: gets the requests only of teams whose data may leave it."""


@put("/backends", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def put_backend(
    data: JSONBody[BackendSetting], engine: NamedDependency[AsyncEngine], sealer: NamedDependency[Sealer]
) -> BackendRow:
    sealed = sealer.seal(data.api_key, name=data.name) if isinstance(data.api_key, str) else data.api_key
    base_url = checked_base_url(data.base_url)
    async with engine.begin() as connection:
        return await store.put(
            connection,
            data.name,
            base_url=base_url,
            sealed_api_key=sealed,
            protocol=data.protocol,
            is_external=data.external,
        )


@get("/backends", opt=needs(Role.VIEWER, Level.INSTALLATION))
async def list_backends(engine: NamedDependency[AsyncEngine]) -> Listing[BackendRow]:
    async with engine.begin() as connection:
        return Listing(await store.list_all(connection))


@delete("/backends/{name:path}", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def delete_backend(name: FromPath[str], engine: NamedDependency[AsyncEngine]) -> None:
    async with engine.begin() as connection:
        await store.remove(connection, name.removeprefix("/"))


def checked_base_url(text: str) -> str:
    """Raises ApiError for what is no plain http address."""
    try:
        return normal_base_url(text)
    except ValueError as error:
        raise invalid_request(f"base_url {error}.", param="base_url") from None


ROUTES = (put_backend, list_backends, delete_backend)
