"""Backends: the upstreams that models are served by."""

from datetime import datetime
from typing import Any

from msgspec import UNSET, Struct, UnsetType
from sqlalchemy import Row, delete, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.catalogue.snapshot import Protocol
from descant_gateway.store.catalogue import lock as lock_catalogue
from descant_gateway.store.catalogue_sync import require_not_from_file
from descant_gateway.store.errors import InUse, NotFound
from descant_gateway.store.tables import backends, model_backends


class BackendRow(Struct, frozen=True, kw_only=True):
    """Without the API key: only whether there is one."""

    name: str
    base_url: str
    has_api_key: bool
    protocol: Protocol
    external: bool
    """Outside the house."""
    from_file: bool
    """Kept equal to the catalogue file, and changed there."""
    created_at: datetime


async def put(
    connection: AsyncConnection,
    name: str,
    *,
    base_url: str,
    sealed_api_key: bytes | UnsetType | None,
    protocol: Protocol = Protocol.OPENAI,
    is_external: bool = False,
) -> BackendRow:
    """Creates or replaces; UNSET keeps the API key that is there. Raises InUse for one of the catalogue file."""
    await require_not_from_file(connection, backends, name)
    values: dict[str, object] = {"base_url": base_url, "protocol": protocol.value, "is_external": is_external}
    if sealed_api_key is not UNSET:
        values["sealed_api_key"] = sealed_api_key
    statement = upsert(backends).values(name=name, **values)
    statement = statement.on_conflict_do_update(index_elements=[backends.c.name], set_=values)
    return _backend_row((await connection.execute(statement.returning(backends))).one())


async def list_all(connection: AsyncConnection) -> list[BackendRow]:
    return [_backend_row(row) for row in await connection.execute(select(backends).order_by(backends.c.name))]


async def remove(connection: AsyncConnection, name: str) -> None:
    """Raises NotFound, or InUse with the models that are served there."""
    await lock_catalogue(connection)
    await require_not_from_file(connection, backends, name)
    users = select(model_backends.c.model).where(model_backends.c.backend == name).order_by(model_backends.c.model)
    served = list((await connection.execute(users)).scalars())
    if served:
        raise InUse(f"Backend {name!r} still serves {', '.join(served)}. Move or delete those models first.")
    removed = await connection.execute(delete(backends).where(backends.c.name == name))
    if removed.rowcount == 0:
        raise NotFound("backend", name)


def _backend_row(row: Row[Any]) -> BackendRow:
    return BackendRow(
        name=row.name,
        base_url=row.base_url,
        has_api_key=row.sealed_api_key is not None or row.api_key_env is not None,
        protocol=Protocol(row.protocol),
        external=row.is_external,
        from_file=row.is_from_file,
        created_at=row.created_at,
    )
