"""What the routes share: the engine, from its loading to its end, and which models it serves."""

import asyncio
import time
from pathlib import Path

from descant_engine.async_engine import AsyncEngine
from descant_server.adapter_paths import find_adapters
from descant_server.chat_model import ChatModel
from descant_server.config import AdapterSource, ServerConfig
from descant_server.errors import RETRY_RESTART_S
from descant_server.load_report import LoadReport
from descant_server.metrics import EngineView, Metrics
from descant_server.usage_book import UsageBook
from descant_wire.errors import (
    invalid_request,
    model_not_found,
    not_found,
    service_unavailable,
)
from descant_wire.models import ModelCard
from descant_wire.tracing import open_tracer

RETRY_LOADING_S = 2.0


class Service:
    """Owns the engine. Listens before the model is loaded, and until the last request has ended."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.metrics = Metrics(config.base_names[0], self._view)
        self.load_report = LoadReport()
        self.usage_book = UsageBook()
        self.tracer = open_tracer(config.otlp_endpoint, "descant-server") if config.otlp_endpoint else None
        self._created = int(time.time())
        self._engine: AsyncEngine | None = None
        self._chat_model: ChatModel | None = None
        self._is_draining = False
        self._adapter_sources: dict[str, AdapterSource] = {}
        self._adapter_lock = asyncio.Lock()

    # From start to end

    async def load(self) -> None:
        """Loads the model and checks the adapters of the command line; ready from then on.

        Raises:
            EngineStartError, TokenizerError: the model cannot be served; the message says why.
            ValueError: nor can an adapter, or the folder of adapters.
        """
        offered = self._find_offered()
        engine = await AsyncEngine.start(self.config.engine)
        try:
            engine.offer_adapters({source.name: Path(source.path) for source in offered})
            self._adapter_sources = {source.name: source for source in offered}
            for source in self.config.adapters:
                await engine.load_adapter(source.name, source.path)
                self._adapter_sources[source.name] = source
        except BaseException:
            await engine.close()
            raise
        self._engine = engine

    def _find_offered(self) -> list[AdapterSource]:
        if self.config.lora_dir is None:
            return []
        found = find_adapters(self.config.lora_dir)
        return [AdapterSource(name, str(path)) for name, path in found.items() if name not in self.config.base_names]

    async def drain(self) -> bool:
        """Refuses new requests and waits for the others, as long as the configuration allows. True if all ended."""
        self._is_draining = True
        return self._engine is None or await self._engine.drain(self.config.drain_timeout_s)

    async def close(self) -> None:
        """Ends the engine; streams that are unfinished end with an error."""
        self._is_draining = True
        if self._engine is not None:
            await self._engine.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    # State

    @property
    def is_alive(self) -> bool:
        """False once the engine has died; it does not come back."""
        return self._engine is None or self._engine.is_healthy

    @property
    def engine(self) -> AsyncEngine:
        """The engine, ready for requests.

        Raises:
            ApiError: 503 while it is loading, when the server is about to end, and after the engine has died.
        """
        if self._is_draining:
            raise service_unavailable("The server is shutting down.", retry_after_s=RETRY_RESTART_S, code="draining")
        if self._engine is None:
            raise service_unavailable("The model is being loaded.", retry_after_s=RETRY_LOADING_S, code="loading")
        if not self._engine.is_healthy:
            raise service_unavailable("The engine has died.", retry_after_s=RETRY_RESTART_S, code="engine_dead")
        return self._engine

    # Models

    @property
    def chat_model(self) -> ChatModel:
        """How the served model writes calls and thinks. Raises ApiError 503 as `engine` does."""
        if self._chat_model is None:
            config = self.config
            self._chat_model = ChatModel.of(self.engine.tokenizer, config.tool_call_parser, config.reasoning_parser)
        return self._chat_model

    def adapter_for(self, model: str) -> str | None:
        """The adapter that a request's `model` means; None is the base model. Raises ApiError 404."""
        if model in self.config.base_names:
            return None
        if model in self._adapter_sources:
            return model
        raise model_not_found(model)

    def model_cards(self) -> list[ModelCard]:
        """The base model under each of its names, then the adapters, except those that turned out to be unusable."""
        engine = self.engine
        max_model_len, refused = engine.config.max_model_len, engine.refused_adapters
        root, parent = self.config.engine.model, self.config.base_names[0]
        cards = [
            ModelCard(id=name, created=self._created, root=root, max_model_len=max_model_len)
            for name in self.config.base_names
        ]
        adapters = [
            ModelCard(id=source.name, created=self._created, root=source.path, parent=parent)
            for source in self._adapter_sources.values()
            if source.name not in refused
        ]
        return cards + adapters

    # Adapters

    async def load_adapter(self, source: AdapterSource, *, replace: bool) -> None:
        """Serves an adapter, under a new name or, with `replace`, perhaps a used one.

        Raises:
            ApiError: 400, the name is taken, LoRA is not enabled, or the adapter can't be served exactly; 403, clients
                may not load from there; 404, there is nothing at its path.
        """
        async with self._adapter_lock:
            self._check_loadable(source, replace=replace)
            folder = self.config.runtime_lora.resolve(source.path)
            try:
                await self.engine.load_adapter(source.name, folder)
            except (ValueError, OSError) as error:
                raise invalid_request(str(error), param="lora_path", code="adapter_refused") from None
            self._adapter_sources[source.name] = source

    async def unload_adapter(self, name: str) -> None:
        """Requests under way finish. Raises ApiError 404, or 403 where clients may not change what is served."""
        self.config.runtime_lora.check_open()
        async with self._adapter_lock:
            if name not in self._adapter_sources:
                raise not_found(f"The lora adapter {name!r} cannot be found.", param="lora_name")
            await self.engine.unload_adapter(name)
            del self._adapter_sources[name]

    def _check_loadable(self, source: AdapterSource, *, replace: bool) -> None:
        if not self.config.engine.enable_lora:
            raise invalid_request("This server was started without --enable-lora.", code="lora_disabled")
        if not source.name or source.name in self.config.base_names:
            raise invalid_request(f"{source.name!r} can't be an adapter's name.", param="lora_name")
        if source.name in self._adapter_sources and not replace:
            raise invalid_request(
                f"The lora adapter {source.name!r} has already been loaded. If you want to load the adapter in place,"
                " set 'load_inplace' to true.",
                param="lora_name",
            )

    def _view(self) -> EngineView | None:
        engine = self._engine
        if engine is None or not engine.is_healthy:
            return None
        names = {manifest.digest: name for name, manifest in engine.adapters.items()}
        return EngineView(engine.stats(), engine.num_blocks, engine.config.user.block_size, names)
