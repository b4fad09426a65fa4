"""GET /v1/models, in vLLM's shape: adapters beside their base model, told apart by `parent`."""

from typing import Literal

from msgspec import Struct


class ModelCard(Struct, frozen=True, kw_only=True):
    id: str
    created: int
    """Unix time, seconds."""
    owned_by: str = "descant"
    root: str | None = None
    """Where it was loaded from: the model's name or the adapter's folder."""
    parent: str | None = None
    """The base model, for an adapter."""
    max_model_len: int | None = None
    """Prompt and completion together, tokens; null for an adapter, which has its base model's."""
    object: Literal["model"] = "model"


class ModelList(Struct, frozen=True, kw_only=True):
    data: list[ModelCard]
    object: Literal["list"] = "list"
