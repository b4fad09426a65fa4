"""The model ids that clients may say: base models, adapters (with a parent), aliases (of either)."""

from collections import defaultdict
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Row, Select, delete, insert, or_, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.catalogue.routing_policy import NO_POLICY, RoutingPolicy
from descant_gateway.store.catalogue import lock as lock_catalogue
from descant_gateway.store.catalogue_sync import require_not_from_file
from descant_gateway.store.errors import InUse, Invalid, NotFound
from descant_gateway.store.tables import backends, model_backends, models
from descant_gateway.store.upstreams import policy_of

DEFAULT_MAX_OUTPUT_TOKENS = 4096


class ModelRow(Struct, frozen=True, kw_only=True):
    name: str
    upstream_name: str | None
    """None for an alias."""
    parent: str | None
    alias_of: str | None
    backends: list[str]
    """Empty for an alias, and for an adapter that is served wherever its base model is."""
    weights: list[int]
    """Each backend's share."""
    policy: RoutingPolicy
    from_file: bool
    """Kept equal to the catalogue file, and changed there."""
    max_output_tokens: int | None
    created_at: datetime


class NewModel(Struct, frozen=True, kw_only=True):
    """A base model, or an adapter if `parent` is given."""

    name: str
    upstream_name: str
    parent: str | None = None
    backends: list[str] = []
    weights: list[int] = []
    """As many as backends; empty: equal shares."""
    policy: RoutingPolicy = NO_POLICY
    max_output_tokens: int = DEFAULT_MAX_OUTPUT_TOKENS


async def put(connection: AsyncConnection, model: NewModel) -> ModelRow:
    """Creates or replaces. Raises Invalid."""
    await lock_catalogue(connection)
    await require_not_from_file(connection, models, model.name)
    await _require_parent(connection, model)
    await _require_backends(connection, model)
    await require_known(connection, sorted(model.policy.models), field="policy")
    values = {
        "upstream_name": model.upstream_name,
        "parent": model.parent,
        "alias_of": None,
        "max_output_tokens": model.max_output_tokens,
        "policy": msgspec.to_builtins(model.policy),
    }
    await _upsert(connection, model.name, values)
    weights = model.weights or [1] * len(model.backends)
    links = [
        {"model": model.name, "backend": backend, "position": position, "weight": weight}
        for position, (backend, weight) in enumerate(zip(model.backends, weights, strict=True))
    ]
    if links:
        await connection.execute(insert(model_backends), links)
    return await get(connection, model.name)


async def put_alias(connection: AsyncConnection, name: str, *, target: str) -> ModelRow:
    """Creates or replaces. Raises Invalid: the target must be there, and no alias itself."""
    await lock_catalogue(connection)
    await require_not_from_file(connection, models, name)
    row = await _row(connection, target)
    if row is None or target == name:
        raise Invalid(f"An alias needs another model to stand for; there is no {target!r}.", field="alias_of")
    if row.alias_of is not None:
        raise Invalid(f"{target!r} is an alias itself; name its target {row.alias_of!r}.", field="alias_of")
    await _require_no_dependents(connection, name, "become an alias")
    values = dict.fromkeys(("upstream_name", "parent", "max_output_tokens", "policy")) | {"alias_of": target}
    await _upsert(connection, name, values)
    return await get(connection, name)


async def get(connection: AsyncConnection, name: str) -> ModelRow:
    """Raises NotFound."""
    row = await _row(connection, name)
    if row is None:
        raise NotFound("model", name)
    return _model_row(row, (await _links(connection, name))[name])


async def list_all(connection: AsyncConnection) -> list[ModelRow]:
    links = await _links(connection)
    rows = await connection.execute(select(models).order_by(models.c.name))
    return [_model_row(row, links[row.name]) for row in rows]


async def remove(connection: AsyncConnection, name: str) -> None:
    """Raises NotFound, or InUse with the adapters and aliases that need it."""
    await lock_catalogue(connection)
    await require_not_from_file(connection, models, name)
    await _require_no_dependents(connection, name, "be deleted")
    removed = await connection.execute(delete(models).where(models.c.name == name))
    if removed.rowcount == 0:
        raise NotFound("model", name)


async def require_known(connection: AsyncConnection, names: list[str] | None, *, field: str) -> None:
    """Raises Invalid with the names that no model has: a mistyped allow-list would silently forbid."""
    known = set((await connection.execute(select(models.c.name).where(models.c.name.in_(names or ())))).scalars())
    unknown = sorted(set(names or ()) - known)
    if unknown:
        raise Invalid(f"There is no model {', '.join(unknown)}.", field=field)


async def _require_parent(connection: AsyncConnection, model: NewModel) -> None:
    if model.parent is None:
        return
    await _require_no_dependents(connection, model.name, "become an adapter")
    row = await _row(connection, model.parent)
    if row is None or model.parent == model.name:
        raise Invalid(f"There is no base model {model.parent!r}.", field="parent")
    if row.parent is not None or row.alias_of is not None:
        raise Invalid(f"{model.parent!r} is not a base model but an adapter or an alias.", field="parent")


async def _require_backends(connection: AsyncConnection, model: NewModel) -> None:
    if not model.backends and model.parent is None:
        raise Invalid("A base model needs at least one backend.", field="backends")
    known = set(
        (await connection.execute(select(backends.c.name).where(backends.c.name.in_(model.backends)))).scalars()
    )
    unknown = [name for name in model.backends if name not in known]
    if unknown:
        raise Invalid(f"There is no backend {', '.join(unknown)}.", field="backends")
    if model.weights and len(model.weights) != len(model.backends):
        raise Invalid("There must be a weight for each backend.", field="weights")
    if len(set(model.backends)) < len(model.backends):
        raise Invalid("A backend is named twice.", field="backends")


async def _require_no_dependents(connection: AsyncConnection, name: str, purpose: str) -> None:
    users = select(models.c.name).where(or_(models.c.parent == name, models.c.alias_of == name)).order_by(models.c.name)
    dependents = list((await connection.execute(users)).scalars())
    if dependents:
        raise InUse(f"Model {name!r} cannot {purpose}: {', '.join(dependents)} depend on it.")


async def _upsert(connection: AsyncConnection, name: str, values: dict[str, Any]) -> None:
    statement = upsert(models).values(name=name, **values)
    await connection.execute(statement.on_conflict_do_update(index_elements=[models.c.name], set_=values))
    await connection.execute(delete(model_backends).where(model_backends.c.model == name))


async def _row(connection: AsyncConnection, name: str) -> Row[Any] | None:
    return (await connection.execute(select(models).where(models.c.name == name))).one_or_none()


async def _links(connection: AsyncConnection, name: str | None = None) -> defaultdict[str, list[tuple[str, int]]]:
    query: Select[Any] = select(model_backends).order_by(model_backends.c.position)
    if name is not None:
        query = query.where(model_backends.c.model == name)
    links: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for link in await connection.execute(query):
        links[link.model].append((link.backend, link.weight))
    return links


def _model_row(row: Row[Any], served_by: list[tuple[str, int]]) -> ModelRow:
    return ModelRow(
        name=row.name,
        upstream_name=row.upstream_name,
        parent=row.parent,
        alias_of=row.alias_of,
        backends=[backend for backend, _ in served_by],
        weights=[weight for _, weight in served_by],
        policy=policy_of(row.policy),
        from_file=row.is_from_file,
        max_output_tokens=row.max_output_tokens,
        created_at=row.created_at,
    )
