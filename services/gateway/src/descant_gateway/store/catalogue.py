"""The catalogue, read in one consistent look at the database: all of it, or the rows that changed since a version."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping
from ipaddress import ip_network
from typing import Any, Final, TypeVar
from uuid import UUID

from msgspec.structs import replace
from sqlalchemy import Row, Select, Table, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.catalogue.sharded import ShardedMap
from descant_gateway.catalogue.snapshot import (
    AllowList,
    Catalogue,
    EndingSecret,
    Key,
    LimitRule,
    Organization,
    Price,
    Project,
    RateLimits,
    Team,
)
from descant_gateway.sealing import Sealer, UnsealError
from descant_gateway.store import catalogue_changes, charged_prices, tables, upstreams, webhooks
from descant_gateway.store.catalogue_changes import Changes

IN_CHUNKS: Final = {"yield_per": 500}
"""Ten thousands of keys must not hold up the requests on this event loop."""

ANSWER_TIMEOUT_S: Final = 5.0


class PartlyRead(Exception):
    """Something sealed could not be opened. `catalogue` has all other changes, and is to be read again."""

    def __init__(self, catalogue: Catalogue, why: str) -> None:
        super().__init__(why)
        self.catalogue = catalogue


RowT = TypeVar("RowT")
Ids = Collection[str] | None
"""Of the rows to read; None: all rows."""


async def version(connection: AsyncConnection) -> int:
    """Rises with every change to the catalogue."""
    found: int = (await connection.execute(select(tables.catalogue_version.c.version))).scalar_one()
    return found


async def lock(connection: AsyncConnection) -> None:
    """Makes changes that check other rows first wait for one another, until the transaction ends."""
    await connection.execute(select(tables.catalogue_version.c.version).with_for_update())


async def load(engine: AsyncEngine, sealer: Sealer) -> Catalogue:
    """The catalogue of one moment. Raises sealing.UnsealError, and the driver's errors."""
    async with engine.connect() as connection:
        await _one_moment(connection)
        return await _whole(connection, sealer)


async def refresh(engine: AsyncEngine, sealer: Sealer, known: Catalogue) -> Catalogue:
    """The newest: `known` itself if nothing changed, else with the changed rows read anew. Raises as `load` does, or
    PartlyRead: a credential that nobody can open must not keep a revoked key alive.
    """
    async with engine.connect() as connection:
        await _one_moment(connection)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            newest = await version(connection)
        if newest == known.version:
            return known
        changes = await catalogue_changes.since(connection, known.version, newest)
        if changes is None:
            return await _whole(connection, sealer)
        return await _reread(connection, sealer, known, changes)


async def _one_moment(connection: AsyncConnection) -> None:
    await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


async def _whole(connection: AsyncConnection, sealer: Sealer) -> Catalogue:
    return Catalogue(
        version=await version(connection),
        organizations=await _organizations(connection),
        teams=await _teams(connection),
        projects=await _projects(connection),
        keys=ShardedMap(await _keys(connection)),
        models=await upstreams.models(connection),
        backends=await upstreams.backends(connection, sealer),
        limits=await _limit_rules(connection),
        prices=await _prices(connection),
        webhooks=await webhooks.by_organization(connection, sealer),
    )


async def _reread(connection: AsyncConnection, sealer: Sealer, known: Catalogue, changes: Changes) -> Catalogue:
    """Costs as much as what changed: one key among any number is two small queries and one shard."""
    catalogue = replace(known, version=changes.version)
    if ids := changes.ids_of("keys"):
        found = await _keys(connection, ids)
        catalogue = replace(catalogue, keys=_sharded(known.keys).changed(found, ids - found.keys()))
    if ids := changes.ids_of("organizations"):
        organizations = _with(known.organizations, ids, await _organizations(connection, ids))
        catalogue = replace(catalogue, organizations=organizations)
    if ids := changes.ids_of("teams"):
        catalogue = replace(catalogue, teams=_with(known.teams, ids, await _teams(connection, ids)))
    if ids := changes.ids_of("projects"):
        catalogue = replace(catalogue, projects=_with(known.projects, ids, await _projects(connection, ids)))
    if ids := changes.ids_of("limits"):
        catalogue = replace(catalogue, limits=_with(known.limits, ids, await _limit_rules(connection, ids)))
    if changes.ids_of("prices"):
        catalogue = replace(catalogue, prices=await _prices(connection))
    try:
        return await _with_sealed(connection, sealer, catalogue, changes)
    except UnsealError as error:
        raise PartlyRead(replace(catalogue, version=known.version), str(error)) from error


async def _with_sealed(
    connection: AsyncConnection, sealer: Sealer, catalogue: Catalogue, changes: Changes
) -> Catalogue:
    if changes.ids_of("models"):
        models, backends = await upstreams.models(connection), await upstreams.backends(connection, sealer)
        catalogue = replace(catalogue, models=models, backends=backends)
    if changes.ids_of("webhooks"):
        catalogue = replace(catalogue, webhooks=await webhooks.by_organization(connection, sealer))
    return catalogue


def _sharded(keys: Mapping[str, Key]) -> ShardedMap[str, Key]:
    return keys if isinstance(keys, ShardedMap) else ShardedMap(keys)


def _with(known: Mapping[UUID, RowT], ids: Collection[str], found: dict[UUID, RowT]) -> dict[UUID, RowT]:
    changed = {UUID(text) for text in ids}
    return {key: value for key, value in known.items() if key not in changed} | found


async def _organizations(connection: AsyncConnection, ids: Ids = None) -> dict[UUID, Organization]:
    rows = await connection.execute(_rows(tables.organizations, ids))
    return {row.id: Organization(id=row.id, name=row.name, allowed=_allowed(row)) for row in rows}


async def _projects(connection: AsyncConnection, ids: Ids = None) -> dict[UUID, Project]:
    rows = await connection.execute(_rows(tables.projects, ids))
    return {row.id: Project(id=row.id, team_id=row.team_id, name=row.name, allowed=_allowed(row)) for row in rows}


async def _teams(connection: AsyncConnection, ids: Ids = None) -> dict[UUID, Team]:
    rows = await connection.execute(_rows(tables.teams, ids))
    return {
        row.id: Team(
            id=row.id,
            organization_id=row.organization_id,
            name=row.name,
            limits=_limits(row),
            allowed=_allowed(row),
            priority=row.priority,
            weight=row.weight,
            allows_external=row.allows_external,
            prompt_log_days=row.prompt_log_days,
            response_cache_s=row.response_cache_s,
        )
        for row in rows
    }


async def _keys(connection: AsyncConnection, public_ids: Ids = None) -> dict[str, Key]:
    """Keys by public id, revoked and expired ones too: their holders are told so."""
    secrets = await _secrets(connection, public_ids)
    query = select(tables.keys)
    if public_ids is not None:
        query = query.where(tables.keys.c.public_id.in_(public_ids))
    found = await connection.stream(query, execution_options=IN_CHUNKS)
    return {row.public_id: _key(row, secrets.get(row.id, ())) async for rows in found.partitions() for row in rows}


async def _secrets(connection: AsyncConnection, public_ids: Ids) -> dict[UUID, tuple[EndingSecret | bytes, ...]]:
    """By key id, oldest first; those that ended already too."""
    columns = (tables.key_secrets.c.key_id, tables.key_secrets.c.secret_hmac, tables.key_secrets.c.not_after)
    query: Select[Any] = select(*columns).order_by(tables.key_secrets.c.created_at)
    if public_ids is not None:
        query = query.join(tables.keys).where(tables.keys.c.public_id.in_(public_ids))
    secrets: defaultdict[UUID, tuple[EndingSecret | bytes, ...]] = defaultdict(tuple)
    found = await connection.stream(query, execution_options=IN_CHUNKS)
    async for rows in found.partitions():
        for row in rows:
            secret = row.secret_hmac if row.not_after is None else EndingSecret(row.secret_hmac, row.not_after)
            secrets[row.key_id] += (secret,)
    return secrets


async def _limit_rules(connection: AsyncConnection, owner_ids: Ids = None) -> dict[UUID, tuple[LimitRule, ...]]:
    """By the owner's id."""
    query = select(tables.limits)
    if owner_ids is not None:
        query = query.where(tables.limits.c.owner_id.in_([UUID(text) for text in owner_ids]))
    rules: defaultdict[UUID, tuple[LimitRule, ...]] = defaultdict(tuple)
    found = await connection.stream(query, execution_options=IN_CHUNKS)
    async for rows in found.partitions():
        for row in rows:
            rules[row.owner_id] += (_limit_rule(row),)
    return dict(rules)


def _limit_rule(row: Row[Any]) -> LimitRule:
    return LimitRule(
        kind=row.kind,
        capacity=row.capacity,
        model=row.model,
        is_shadow=row.is_shadow,
        warn_at=tuple(row.warn_at),
    )


async def _prices(connection: AsyncConnection) -> dict[str, tuple[Price, ...]]:
    return await charged_prices.by_model(connection)


def _key(row: Row[Any], secrets: tuple[EndingSecret | bytes, ...]) -> Key:
    return Key(
        id=row.id,
        public_id=row.public_id,
        team_id=row.team_id,
        name=row.name,
        secret_hmacs=tuple(secret for secret in secrets if isinstance(secret, bytes)),
        ending_secrets=tuple(secret for secret in secrets if isinstance(secret, EndingSecret)),
        project_id=row.project_id,
        scopes=None if row.scopes is None else frozenset(row.scopes),
        limits=_limits(row),
        allowed=_allowed(row),
        ip_ranges=tuple(ip_network(text) for text in row.ip_ranges),
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def _rows(table: Table, ids: Ids) -> Select[Any]:
    return select(table) if ids is None else select(table).where(table.c.id.in_([UUID(text) for text in ids]))


def _limits(row: Row[Any]) -> RateLimits:
    return RateLimits(requests_per_minute=row.requests_per_minute, tokens_per_minute=row.tokens_per_minute)


def _allowed(row: Row[Any]) -> AllowList:
    return AllowList(models=_names(row.allowed_models), adapters=_names(row.allowed_adapters))


def _names(names: list[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)
