"""Scopes: the endpoints that a key opens. A key without a list opens all of /v1, and nothing of the admin API."""

from enum import StrEnum
from typing import Final


class Scope(StrEnum):
    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    TOKENIZE = "tokenize"
    MODELS = "models"
    LIMITS = "limits"
    ADMIN = "admin"
    """The admin API, as far as the key's role reaches."""


INFERENCE: Final = frozenset(Scope) - {Scope.ADMIN}
"""What a key without a list of scopes has."""

_BY_PATH: Final = {
    "/v1/chat/completions": Scope.CHAT,
    "/v1/messages": Scope.CHAT,
    "/v1/completions": Scope.COMPLETIONS,
    "/v1/responses": Scope.RESPONSES,
    "/v1/embeddings": Scope.EMBEDDINGS,
    "/v1/tokenize": Scope.TOKENIZE,
    "/v1/detokenize": Scope.TOKENIZE,
    "/tokenize": Scope.TOKENIZE,
    "/detokenize": Scope.TOKENIZE,
    "/v1/models": Scope.MODELS,
    "/v1/limits": Scope.LIMITS,
}
_MODELS: Final = "/v1/models/"


def scope_of(path: str) -> Scope | None:
    """None for an endpoint without a scope of its own: only a key without a list opens it."""
    return Scope.MODELS if path.startswith(_MODELS) else _BY_PATH.get(path)
