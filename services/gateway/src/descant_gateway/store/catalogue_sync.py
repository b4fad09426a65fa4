"""Keeps the database equal to a catalogue file: what differs, and the changes that end it, in one transaction.

What the file names is the file's; what was made over the admin API and is not in the file is left alone.
"""

from collections import defaultdict
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Row, Table, delete, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.catalogue.entries import BackendEntry, CatalogueFile, ModelEntry
from descant_gateway.catalogue.snapshot import Protocol
from descant_gateway.store.catalogue import lock as lock_catalogue
from descant_gateway.store.errors import InUse
from descant_gateway.store.tables import backends, model_backends, models
from descant_gateway.store.upstreams import policy_of

Entry = BackendEntry | ModelEntry | str
"""A string is what an alias stands for."""


class ChangeKind(StrEnum):
    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"


class Change(Struct, frozen=True):
    kind: ChangeKind
    what: str
    """backend or model; an alias is a model's name."""
    name: str
    before: Entry | None
    after: Entry | None

    def __str__(self) -> str:
        detail = f": {'; '.join(_differences(self.before, self.after))}" if self.kind is ChangeKind.CHANGE else ""
        return f"{self.kind.value} {self.what} {self.name!r}{detail}"


async def differences(connection: AsyncConnection, wanted: CatalogueFile) -> list[Change]:
    """What `apply` would do, in its order: what others need is added first and removed last."""
    found_backends = await _backends(connection, wanted)
    found_models = await _models(connection, wanted)
    wanted_models: dict[str, Entry] = {**wanted.models, **wanted.aliases}
    changes = _changes("backend", found_backends, dict(wanted.backends))
    changes += sorted(_changes("model", found_models, wanted_models), key=_depth)
    added = [change for change in changes if change.kind is not ChangeKind.REMOVE]
    removed = [change for change in changes if change.kind is ChangeKind.REMOVE]
    return added + removed[::-1]


async def apply(connection: AsyncConnection, wanted: CatalogueFile) -> list[Change]:
    """Inside a transaction. Raises InUse if something that the admin API made needs what the file no longer has."""
    await lock_catalogue(connection)
    changes = await differences(connection, wanted)
    for change in changes:
        match change.after:
            case None:
                await _remove(connection, change)
            case BackendEntry():
                await _upsert(connection, backends, change.name, _backend_values(change.after))
            case ModelEntry():
                await _put_model(connection, change.name, change.after)
            case str():
                await _upsert(connection, models, change.name, _alias_values(change.after))
    return changes


def _changes(what: str, found: Mapping[str, Entry], wanted: Mapping[str, Entry]) -> list[Change]:
    changes = []
    for name in sorted(found.keys() | wanted.keys()):
        before, after = found.get(name), wanted.get(name)
        if before is None:
            changes.append(Change(ChangeKind.ADD, what, name, None, after))
        elif after is None:
            changes.append(Change(ChangeKind.REMOVE, what, name, before, None))
        elif _comparable(before) != _comparable(after):
            changes.append(Change(ChangeKind.CHANGE, what, name, before, after))
    return changes


def _depth(change: Change) -> int:
    """Base models, then what hangs on them."""
    entry = change.after if change.after is not None else change.before
    if isinstance(entry, ModelEntry):
        return 0 if entry.parent is None else 1
    return 2


def _comparable(entry: Entry) -> object:
    if isinstance(entry, ModelEntry):
        return msgspec.structs.replace(entry, backends=dict(entry.weights)), list(entry.weights)
    return entry


def _differences(before: Entry | None, after: Entry | None) -> list[str]:
    if not isinstance(before, ModelEntry | BackendEntry) or type(before) is not type(after):
        return [f"{msgspec.to_builtins(before)!r} -> {msgspec.to_builtins(after)!r}"]
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(after)
    return [f"{name}: {old[name]!r} -> {new[name]!r}" for name in new if old[name] != new[name]]


async def _backends(connection: AsyncConnection, wanted: CatalogueFile) -> dict[str, Entry]:
    rows = await connection.execute(select(backends))
    return {row.name: _backend_entry(row) for row in rows if row.is_from_file or row.name in wanted.backends}


def _backend_entry(row: Row[Any]) -> BackendEntry:
    return BackendEntry(
        base_url=row.base_url,
        api_key_env=row.api_key_env,
        protocol=Protocol(row.protocol),
        external=row.is_external,
        max_in_flight=row.max_in_flight,
    )


async def _models(connection: AsyncConnection, wanted: CatalogueFile) -> dict[str, Entry]:
    weights: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for link in await connection.execute(select(model_backends).order_by(model_backends.c.position)):
        weights[link.model][link.backend] = link.weight
    rows = await connection.execute(select(models))
    named = wanted.models.keys() | wanted.aliases.keys()
    return {row.name: _model_entry(row, weights) for row in rows if row.is_from_file or row.name in named}


def _model_entry(row: Row[Any], weights: Mapping[str, dict[str, int]]) -> Entry:
    if row.alias_of is not None:
        return str(row.alias_of)
    policy = policy_of(row.policy)
    return ModelEntry(
        upstream_name=None if row.upstream_name == row.name else row.upstream_name,
        parent=row.parent,
        backends=weights.get(row.name, {}),
        max_output_tokens=row.max_output_tokens,
        fallbacks=policy.fallbacks,
        canary=policy.canary,
        shadow=policy.shadow,
        time_limits=policy.time_limits,
    )


def _backend_values(entry: BackendEntry) -> dict[str, object]:
    return {
        "base_url": entry.base_url,
        "api_key_env": entry.api_key_env,
        "protocol": entry.protocol.value,
        "is_external": entry.external,
        "max_in_flight": entry.max_in_flight,
    }


def _alias_values(target: str) -> dict[str, object]:
    return {"alias_of": target, "upstream_name": None, "parent": None, "max_output_tokens": None, "policy": None}


async def _put_model(connection: AsyncConnection, name: str, entry: ModelEntry) -> None:
    values = {
        "alias_of": None,
        "upstream_name": entry.upstream_name or name,
        "parent": entry.parent,
        "max_output_tokens": entry.max_output_tokens,
        "policy": msgspec.to_builtins(entry.policy),
    }
    await _upsert(connection, models, name, values)
    await connection.execute(delete(model_backends).where(model_backends.c.model == name))
    links = [
        {"model": name, "backend": backend, "position": position, "weight": weight}
        for position, (backend, weight) in enumerate(entry.weights.items())
    ]
    if links:
        await connection.execute(insert(model_backends), links)


async def _upsert(connection: AsyncConnection, table: Table, name: str, values: dict[str, object]) -> None:
    values = values | {"is_from_file": True}
    statement = upsert(table).values(name=name, **values)
    await connection.execute(statement.on_conflict_do_update(index_elements=[table.c.name], set_=values))


async def _remove(connection: AsyncConnection, change: Change) -> None:
    await _require_unused(connection, change)
    table = backends if change.what == "backend" else models
    await connection.execute(delete(table).where(table.c.name == change.name))


async def _require_unused(connection: AsyncConnection, change: Change) -> None:
    if change.what == "backend":
        query = select(model_backends.c.model).where(model_backends.c.backend == change.name)
    else:
        query = select(models.c.name).where((models.c.parent == change.name) | (models.c.alias_of == change.name))
    users = sorted((await connection.execute(query)).scalars())
    if users:
        raise InUse(f"The file no longer has the {change.what} {change.name!r}, which {', '.join(users)} still need.")


async def require_not_from_file(connection: AsyncConnection, table: Table, name: str) -> None:
    """Before the admin API changes a row: the file would change it back. Raises InUse."""
    query = select(table.c.is_from_file).where(table.c.name == name)
    if (await connection.execute(query)).scalar_one_or_none():
        raise InUse(f"{name!r} comes from the catalogue file; change it there.")
