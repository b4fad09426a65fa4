"""Follows a catalogue file: applied at the start and whenever it changes. A file with mistakes changes nothing."""

import asyncio
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.catalogue.file import CatalogueFileError, parse_catalogue
from descant_gateway.store import catalogue_sync
from descant_gateway.store.catalogue_sync import Change
from descant_gateway.store.errors import InUse

LOOK_EVERY_S: Final = 2.0
RETRY_S: Final = 10.0
"""After the database was away, or something still needed what the file no longer has."""

_log = structlog.get_logger("descant_gateway.feed.catalogue_watch")


class CatalogueWatch:
    """Any number of gateways may follow copies of one file: whoever comes second finds nothing to do."""

    def __init__(self, engine: AsyncEngine, path: Path, *, look_every_s: float = LOOK_EVERY_S) -> None:
        self._engine = engine
        self._path = path
        self._look_every_s = look_every_s
        self._applied = b""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Applies the file.

        Raises:
            CatalogueFileError, OSError, UnicodeDecodeError, InUse: the file can't be served from.
            SQLAlchemyError: nor can the database.
        """
        await self._apply(self._path.read_bytes())
        self._task = asyncio.create_task(self._follow(), name="catalogue-file")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        refused = b""
        while True:
            await asyncio.sleep(self._look_every_s)
            try:
                content = self._path.read_bytes()
                if content not in (self._applied, refused):
                    await self._apply(content)
            except (CatalogueFileError, UnicodeDecodeError) as error:
                refused = content
                _log.error("the catalogue file has mistakes and was not applied", file=str(self._path), why=str(error))
            except (OSError, SQLAlchemyError, InUse) as error:
                _log.error("the catalogue file could not be applied", file=str(self._path), why=str(error))
                await asyncio.sleep(RETRY_S)

    async def _apply(self, content: bytes) -> None:
        changes = await apply_catalogue(self._engine, content.decode())
        self._applied = content
        _log.info("the catalogue file was applied", file=str(self._path), changes=[str(change) for change in changes])


async def apply_catalogue(engine: AsyncEngine, text: str) -> list[Change]:
    wanted = parse_catalogue(text)
    async with engine.begin() as connection:
        return await catalogue_sync.apply(connection, wanted)
