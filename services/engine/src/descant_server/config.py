"""What `descant serve` was asked for. Frozen; made by the command line or by a test."""

from dataclasses import dataclass
from pathlib import Path

from descant_engine.config import EngineConfig
from descant_server.adapter_paths import NO_RUNTIME_PATHS, RuntimePaths


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter to load at start."""

    name: str
    """The model id that requests will say."""
    path: str
    """A folder in PEFT's format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    engine: EngineConfig
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free port; the line on standard output says which."""
    served_model_names: tuple[str, ...] = ()
    """Ids of the base model, the first of them in answers; empty means the engine's `model` as it is written."""
    adapters: tuple[AdapterSource, ...] = ()
    lora_dir: Path | None = None
    """Every adapter in it is served by its folder's name, and read when a request first names it."""
    runtime_lora: RuntimePaths = NO_RUNTIME_PATHS
    api_keys: tuple[str, ...] = ()
    """Any of them opens the API; empty leaves it open to all."""
    otlp_endpoint: str | None = None
    """Where traces go, OTLP over HTTP. None: there are none."""
    internal_key: str | None = None
    """The gateway signs with it whose a request is and how urgent. None: nobody's word counts for that."""
    tool_call_parser: str = "auto"
    """A name of `text.tool_calls.parsers.FORMS`; "auto" goes by the chat template, as the next does."""
    reasoning_parser: str = "auto"
    """A name of `text.reasoning.FORMS`."""
    max_body_bytes: int = 16 << 20
    drain_timeout_s: float = 30.0
    """On SIGTERM, how long running requests may take before they are aborted."""

    @property
    def base_names(self) -> tuple[str, ...]:
        return self.served_model_names or (self.engine.model,)
