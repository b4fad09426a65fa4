"""What changed in the catalogue since a version: triggers write one row for each statement that changed something."""

from collections import defaultdict
from typing import Final

from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store import tables

KINDS: Final = frozenset({"organizations", "teams", "projects", "keys", "models", "limits", "prices", "webhooks"})
"""Those that `store.catalogue.refresh` can read by themselves. Any other kind asks for a whole load."""
MAX_IDS: Final = 2000
"""With more than these, a whole load is no dearer."""


class Changes(Struct, frozen=True):
    """The rows that differ between the version asked about and `version`."""

    version: int
    ids: dict[str, frozenset[str]]
    """By kind. Keys are named by their public id."""

    def ids_of(self, kind: str) -> frozenset[str]:
        return self.ids.get(kind, frozenset())


async def since(connection: AsyncConnection, known: int, newest: int) -> Changes | None:
    """What happened after version `known`, up to `newest`. None where that cannot be told in rows: load everything."""
    changes = tables.catalogue_changes.c
    query = select(changes.version, changes.kind, changes.ids).where(changes.version > known, changes.version <= newest)
    rows = (await connection.execute(query)).all()
    if len(rows) != newest - known:  # one was dropped for its age, or the version was raised by hand
        return None
    ids: defaultdict[str, frozenset[str]] = defaultdict(frozenset)
    for row in rows:
        if row.ids is None or row.kind not in KINDS:
            return None
        ids[row.kind] |= frozenset(row.ids)
    if sum(map(len, ids.values())) > MAX_IDS:
        return None
    return Changes(newest, dict(ids))
