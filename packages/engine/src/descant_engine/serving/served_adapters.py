"""What names mean: here, where requests name an adapter, and in the engine, which knows it by its digest."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from descant_engine.adapters.files import AdapterRefused
from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.adapters.offered import OfferedAdapters
from descant_engine.frontend import Frontend
from descant_engine.serving.engine_client import EngineClient, EngineDead
from descant_engine.serving.messages import AdapterAnswer, RegisterAdapter, RemoveAdapter


class ServedAdapters:
    """Used on one event loop. A name changes its meaning only once the engine has taken the new adapter."""

    def __init__(self, client: EngineClient, frontend: Frontend) -> None:
        self._client = client
        self._frontend = frontend
        self._offered = OfferedAdapters(self._load_offered)
        self._lock = asyncio.Lock()
        self._answers: dict[str, asyncio.Future[AdapterAnswer]] = {}
        """Digest -> what the engine says of an adapter that it was asked to register."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Name -> reason, of the offered ones that turned out to be impossible to serve."""
        return self._offered.refused

    def offer(self, folders: Mapping[str, Path]) -> None:
        """Lets each name mean the adapter in its PEFT folder, which is read when a request first names it."""
        self._offered.offer(folders)

    async def load(self, name: str, folder: str | Path) -> AdapterManifest:
        """Lets the name mean the folder's adapter. Raises ValueError or EngineDead; the name is as before then."""
        manifest = await asyncio.to_thread(self._frontend.read_adapter, folder)
        async with self._lock:
            await self._let_mean(name, manifest)
            self._offered.withdraw(name)
        return manifest

    async def unload(self, name: str) -> None:
        """Lets the name mean nothing. Raises UnknownModel."""
        async with self._lock:
            if self._offered.withdraw(name) and not self._frontend.has_adapter(name):
                return
            self._remove(self._frontend.forget_adapter(name))

    async def require(self, name: str) -> None:
        """Waits for an offered adapter's files to be looked at. Raises AdapterRefused, UnknownModel or EngineDead."""
        await self._offered.ensure_loaded(name)
        self._frontend.adapter(name)

    def answered(self, answer: AdapterAnswer) -> None:
        """The engine's word on an adapter."""
        if (waiting := self._answers.pop(answer.digest, None)) is not None and not waiting.done():
            waiting.set_result(answer)

    def fail_all(self, reason: EngineDead) -> None:
        """No answer will come any more."""
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(reason)

    async def _load_offered(self, name: str, folder: Path) -> None:
        manifest = await asyncio.to_thread(self._frontend.read_adapter, folder)
        async with self._lock:
            # Meanwhile the name may have been given to another adapter, or taken away.
            if self._offered.offers(name, folder):
                await self._let_mean(name, manifest)

    async def _let_mean(self, name: str, manifest: AdapterManifest) -> None:
        await self._register(manifest)
        self._remove(self._frontend.name_adapter(name, manifest))

    async def _register(self, manifest: AdapterManifest) -> None:
        self._client.check_alive()
        answer = self._answers[manifest.digest] = asyncio.get_running_loop().create_future()
        self._client.send(RegisterAdapter(manifest))
        try:
            refusal = (await answer).refusal
        except asyncio.CancelledError:
            if not self._frontend.knows_digest(manifest.digest):
                self._remove(manifest.digest)
            raise
        if refusal is not None:
            raise AdapterRefused(refusal)

    def _remove(self, digest: str | None) -> None:
        if digest is not None:
            self._client.send(RemoveAdapter(digest))
