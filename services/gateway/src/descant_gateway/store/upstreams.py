"""Models and backends as the catalogue has them: aliases resolved, policies decoded, credentials opened."""

import os
from collections import defaultdict
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.catalogue.routing_policy import NO_POLICY, RoutingPolicy
from descant_gateway.catalogue.snapshot import Backend, ModelRoute, Protocol
from descant_gateway.sealing import Sealer
from descant_gateway.store import tables


class _Link(Struct, frozen=True):
    backend: str
    weight: int


_Links = defaultdict[str, list[_Link]]


async def models(connection: AsyncConnection) -> dict[str, ModelRoute]:
    """An adapter without backends of its own has its base model's."""
    links: _Links = defaultdict(list)
    for link in await connection.execute(select(tables.model_backends).order_by(tables.model_backends.c.position)):
        links[link.model].append(_Link(link.backend, link.weight))
    rows = {row.name: row for row in await connection.execute(select(tables.models))}
    return {name: _model_route(row, rows[row.alias_of or name], links) for name, row in rows.items()}


async def backends(connection: AsyncConnection, sealer: Sealer) -> dict[str, Backend]:
    """Raises sealing.UnsealError."""
    rows = await connection.execute(select(tables.backends))
    return {row.name: _backend(row, sealer) for row in rows}


def policy_of(stored: Any) -> RoutingPolicy:
    """Of the column's JSON."""
    return NO_POLICY if stored is None else msgspec.convert(stored, RoutingPolicy)


def _model_route(named: Row[Any], served: Row[Any], links: _Links) -> ModelRoute:
    found = links.get(served.name) or links.get(served.parent or "", [])
    return ModelRoute(
        name=named.name,
        upstream_name=served.upstream_name,
        parent=served.parent,
        target=named.alias_of,
        backends=tuple(link.backend for link in found),
        weights=tuple(link.weight for link in found),
        policy=policy_of(served.policy),
        max_output_tokens=served.max_output_tokens,
    )


def _backend(row: Row[Any], sealer: Sealer) -> Backend:
    return Backend(
        name=row.name,
        base_url=row.base_url,
        api_key=_api_key(row, sealer),
        max_in_flight=row.max_in_flight,
        protocol=Protocol(row.protocol),
        is_external=row.is_external,
    )


def _api_key(row: Row[Any], sealer: Sealer) -> str | None:
    if row.sealed_api_key:
        return sealer.unseal(row.sealed_api_key, name=row.name)
    return os.environ.get(row.api_key_env) if row.api_key_env else None
