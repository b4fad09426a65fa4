"""Adapters that requests may name although nobody has looked at their files yet."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from descant_engine.adapters.files import AdapterRefused, folder_stamp


class _Refusal(NamedTuple):
    text: str
    stamp: str
    """Of the folder that was refused: what is written anew is looked at anew."""


class OfferedAdapters:
    """Loads an adapter when a request first names it. What is wrong with one concerns the requests that name it."""

    def __init__(self, load: Callable[[str, Path], Awaitable[object]]) -> None:
        """`load(name, folder)` lets the name mean the folder's adapter, unless it is no longer on offer when that is
        known; a ValueError or an OSError says why not."""
        self._load = load
        self._folders: dict[str, Path] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, _Refusal] = {}

    @property
    def refused(self) -> Mapping[str, str]:
        """Name -> reason, of those that turned out to be impossible to serve."""
        return {name: refusal.text for name, refusal in self._refused.items()}

    def offer(self, folders: Mapping[str, Path]) -> None:
        """Names and their PEFT folders, which are not touched."""
        self._folders.update(folders)

    def withdraw(self, name: str) -> bool:
        """Whether the name was offered. A look at its files that is under way comes to nothing."""
        self._refused.pop(name, None)
        return self._folders.pop(name, None) is not None

    def offers(self, name: str, folder: Path) -> bool:
        return self._folders.get(name) == folder

    async def ensure_loaded(self, name: str) -> None:
        """Returns at once for a name that is not on offer, or not any more.

        Raises:
            AdapterRefused: its files cannot be served; the message says why.
            EngineDead: nothing can be served any more.
        """
        while name in self._folders:
            if name not in self._loading:
                self._loading[name] = asyncio.create_task(self._load_once(name, self._folders[name]))
                self._loading[name].add_done_callback(_retrieve)
            # A client that leaves must not take the adapter from the others.
            await asyncio.shield(self._loading[name])

    async def _load_once(self, name: str, folder: Path) -> None:
        try:
            await self._load_unless_refused(name, folder)
            if self.offers(name, folder):
                self.withdraw(name)
        finally:
            del self._loading[name]

    async def _load_unless_refused(self, name: str, folder: Path) -> None:
        stamp = await asyncio.to_thread(folder_stamp, folder)
        known = self._refused.get(name)
        if known is not None and known.stamp == stamp:
            raise AdapterRefused(known.text)
        try:
            await self._load(name, folder)
        except (ValueError, OSError) as error:
            if not self.offers(name, folder):
                return
            text = f"the adapter {name!r} cannot be served: {error}"
            self._refused[name] = _Refusal(text, stamp)
            raise AdapterRefused(text) from None


def _retrieve(task: asyncio.Task[None]) -> None:
    """Where all who asked have left, nobody else asks for the error."""
    if not task.cancelled():
        task.exception()
