"""The catalogue, read in one consistent look at the database."""

from collections import defaultdict
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.catalogue import Backend, Catalogue, Key, LimitRule, ModelRoute, Price, RateLimits, Team
from descant_gateway.sealing import Sealer
from descant_gateway.store import tables, webhooks

IN_CHUNKS: Final = {"yield_per": 500}
"""Ten thousands of keys must not hold up the requests on this event loop."""


class SecretExpiry(Struct, frozen=True, order=True):
    """From `not_after` on, this secret of the key is no longer valid."""

    not_after: datetime
    public_id: str
    secret_hmac: bytes


class Snapshot(Struct, frozen=True):
    """A catalogue and what time alone will change in it, soonest first."""

    catalogue: Catalogue
    expiries: tuple[SecretExpiry, ...]


async def version(connection: AsyncConnection) -> int:
    """Rises with every change to the catalogue."""
    found: int = (await connection.execute(select(tables.catalogue_version.c.version))).scalar_one()
    return found


async def lock(connection: AsyncConnection) -> None:
    """Makes changes that check other rows first wait for one another, until the transaction ends."""
    await connection.execute(select(tables.catalogue_version.c.version).with_for_update())


async def load(engine: AsyncEngine, sealer: Sealer) -> Snapshot:
    """The catalogue of one moment. Raises sealing.UnsealError, and the driver's errors."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        loaded_version = await version(connection)
        keys, expiries = await _keys(connection)
        catalogue = Catalogue(
            version=loaded_version,
            teams=await _teams(connection),
            keys=keys,
            models=await _models(connection),
            backends=await _backends(connection, sealer),
            limits=await _limit_rules(connection),
            prices=await _prices(connection),
            webhooks=await webhooks.by_organization(connection, sealer),
        )
    return Snapshot(catalogue, expiries)


async def _teams(connection: AsyncConnection) -> dict[UUID, Team]:
    rows = await connection.execute(select(tables.teams))
    return {
        row.id: Team(
            id=row.id,
            organization_id=row.organization_id,
            name=row.name,
            limits=_limits(row),
            allowed_models=_allowed_models(row),
            priority=row.priority,
            weight=row.weight,
        )
        for row in rows
    }


async def _keys(connection: AsyncConnection) -> tuple[dict[str, Key], tuple[SecretExpiry, ...]]:
    """Keys by public id, revoked and expired ones too: their holders are told so."""
    secrets, expiries = await _secrets(connection)
    found = await connection.stream(select(tables.keys), execution_options=IN_CHUNKS)
    keys = {row.public_id: _key(row, secrets.get(row.id, ())) async for rows in found.partitions() for row in rows}
    return keys, expiries


async def _secrets(connection: AsyncConnection) -> tuple[dict[UUID, tuple[bytes, ...]], tuple[SecretExpiry, ...]]:
    """The secrets valid now, by key id."""
    now = datetime.now(UTC)
    columns = (tables.key_secrets.c.key_id, tables.key_secrets.c.secret_hmac, tables.key_secrets.c.not_after)
    query = (
        select(*columns, tables.keys.c.public_id)
        .join(tables.keys)
        .where((tables.key_secrets.c.not_after.is_(None)) | (tables.key_secrets.c.not_after > now))
        .order_by(tables.key_secrets.c.created_at)
    )
    secrets: defaultdict[UUID, tuple[bytes, ...]] = defaultdict(tuple)
    expiries = []
    found = await connection.stream(query, execution_options=IN_CHUNKS)
    async for rows in found.partitions():
        for row in rows:
            secrets[row.key_id] += (row.secret_hmac,)
            if row.not_after is not None:
                expiries.append(SecretExpiry(row.not_after, row.public_id, row.secret_hmac))
    return dict(secrets), tuple(sorted(expiries))


async def _models(connection: AsyncConnection) -> dict[str, ModelRoute]:
    """Aliases resolved; an adapter without backends of its own has its base model's."""
    backends: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    links = tables.model_backends
    for link in await connection.execute(select(links.c.model, links.c.backend).order_by(links.c.position)):
        backends[link.model] += (link.backend,)
    rows = {row.name: row for row in await connection.execute(select(tables.models))}
    return {
        name: _model_route(name, rows[row.alias_of] if row.alias_of else row, backends) for name, row in rows.items()
    }


def _model_route(name: str, row: Row[Any], backends: dict[str, tuple[str, ...]]) -> ModelRoute:
    return ModelRoute(
        name=name,
        upstream_name=row.upstream_name,
        target=None if row.name == name else row.name,
        parent=row.parent,
        backends=backends.get(row.name) or backends.get(row.parent or "", ()),
        max_output_tokens=row.max_output_tokens,
    )


async def _backends(connection: AsyncConnection, sealer: Sealer) -> dict[str, Backend]:
    rows = await connection.execute(select(tables.backends))
    return {
        row.name: Backend(
            name=row.name,
            base_url=row.base_url,
            api_key=sealer.unseal(row.sealed_api_key, name=row.name) if row.sealed_api_key else None,
            max_in_flight=row.max_in_flight,
        )
        for row in rows
    }


async def _limit_rules(connection: AsyncConnection) -> dict[UUID, tuple[LimitRule, ...]]:
    """By the owner's id."""
    rules: defaultdict[UUID, tuple[LimitRule, ...]] = defaultdict(tuple)
    found = await connection.stream(select(tables.limits), execution_options=IN_CHUNKS)
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


async def _prices(connection: AsyncConnection) -> dict[str, Price]:
    rows = await connection.execute(select(tables.prices))
    return {row.model: Price(row.input, row.cached, row.output) for row in rows}


def _key(row: Row[Any], secret_hmacs: tuple[bytes, ...]) -> Key:
    return Key(
        id=row.id,
        public_id=row.public_id,
        team_id=row.team_id,
        name=row.name,
        secret_hmacs=secret_hmacs,
        limits=_limits(row),
        allowed_models=_allowed_models(row),
        ip_ranges=tuple(ip_network(text) for text in row.ip_ranges),
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def _limits(row: Row[Any]) -> RateLimits:
    return RateLimits(requests_per_minute=row.requests_per_minute, tokens_per_minute=row.tokens_per_minute)


def _allowed_models(row: Row[Any]) -> frozenset[str] | None:
    return None if row.allowed_models is None else frozenset(row.allowed_models)
