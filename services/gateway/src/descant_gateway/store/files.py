"""Files of clients, in pieces: PostgreSQL and the gateway never hold a whole one in memory at once."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import Select, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store.api_tables import file_chunks, files
from descant_gateway.store.errors import NotFound
from descant_gateway.store.vault import Vault

CHUNK_BYTES: Final = 1 << 20


class StoredFile(Struct, frozen=True, kw_only=True):
    id: str
    team_id: UUID
    filename: str
    purpose: str
    num_bytes: int = 0
    created_at: datetime
    expires_at: datetime


class FilePage(Struct, frozen=True, kw_only=True):
    """Which files: after the one of this id, in the order of creation."""

    purpose: str | None = None
    after: str | None = None
    size: int = 10_000
    is_descending: bool = True


async def create(connection: AsyncConnection, vault: Vault, file: StoredFile) -> "FileWriter":
    """Empty as yet: the writer fills it, in the same transaction."""
    await connection.execute(insert(files).values(asdict(file)))
    return FileWriter(connection, vault, file.id)


class FileWriter:
    """Cuts what it is given into chunks, and seals each."""

    def __init__(self, connection: AsyncConnection, vault: Vault, file_id: str) -> None:
        self._vault = vault
        self._connection = connection
        self._file_id = file_id
        self._pending = bytearray()
        self._position = 0
        self.num_bytes = 0

    async def write(self, data: bytes) -> None:
        self._pending += data
        self.num_bytes += len(data)
        while len(self._pending) >= CHUNK_BYTES:
            await self._write_chunk()

    async def close(self) -> None:
        if self._pending:
            await self._write_chunk()
        its = update(files).where(files.c.id == self._file_id)
        await self._connection.execute(its.values(num_bytes=self.num_bytes))

    async def _write_chunk(self) -> None:
        name = _chunk_name(self._file_id, self._position)
        data = self._vault.close(bytes(self._pending[:CHUNK_BYTES]), name=name)
        chunk = {"file_id": self._file_id, "position": self._position, "data": data}
        await self._connection.execute(insert(file_chunks).values(chunk))
        del self._pending[:CHUNK_BYTES]
        self._position += 1


async def find(connection: AsyncConnection, team_id: UUID, file_id: str) -> StoredFile:
    """Raises NotFound, also for another team's."""
    query = select(files).where(files.c.team_id == team_id, files.c.id == file_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound("file", file_id)
    return StoredFile(**row._mapping)


async def page_of(connection: AsyncConnection, team_id: UUID, page: FilePage) -> list[StoredFile]:
    """One more than the page has, if there are more."""
    query = select(files).where(files.c.team_id == team_id)
    if page.purpose is not None:
        query = query.where(files.c.purpose == page.purpose)
    rows = await connection.execute(_paged(query, page))
    return [StoredFile(**row._mapping) for row in rows]


def _paged(query: Select[tuple[object]], page: FilePage) -> Select[tuple[object]]:
    place = tuple_(files.c.created_at, files.c.id)
    if page.after is not None:
        last = select(files.c.created_at, files.c.id).where(files.c.id == page.after).scalar_subquery()
        query = query.where(place < last if page.is_descending else place > last)
    order = (files.c.created_at, files.c.id)
    return query.order_by(*(column.desc() if page.is_descending else column for column in order)).limit(page.size + 1)


async def remove(connection: AsyncConnection, team_id: UUID, file_id: str) -> None:
    """Raises NotFound."""
    gone = delete(files).where(files.c.team_id == team_id, files.c.id == file_id).returning(files.c.id)
    if (await connection.execute(gone)).one_or_none() is None:
        raise NotFound("file", file_id)


async def stored_bytes(connection: AsyncConnection, team_id: UUID) -> int:
    query = select(func.coalesce(func.sum(files.c.num_bytes), 0)).where(files.c.team_id == team_id)
    return int((await connection.execute(query)).scalar_one())


async def read(connection: AsyncConnection, vault: Vault, file_id: str) -> AsyncIterator[bytes]:
    """Piece by piece; of a file that `find` found. Raises UnsealError."""
    position = 0
    while True:
        its = (file_chunks.c.file_id == file_id, file_chunks.c.position == position)
        data = (await connection.execute(select(file_chunks.c.data).where(*its))).scalar_one_or_none()
        if data is None:
            return
        yield vault.open(bytes(data), name=_chunk_name(file_id, position))
        position += 1


def _chunk_name(file_id: str, position: int) -> str:
    return f"{file_id} {position}"
