"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: vLLM's bodies."""

from msgspec import Struct


class LoadAdapterRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    lora_name: str
    """The model id that requests will say."""
    lora_path: str
    """A folder in PEFT's format, as the server sees it."""
    load_inplace: bool = False
    """Replace an adapter of this name; without it, a name in use is refused."""


class UnloadAdapterRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    lora_name: str
    lora_int_id: int | None = None
    """Harmless: vLLM's internal number; a name is an identity here."""
