"""Scopes: the endpoints that a key opens. A key without a list opens all of /v1, and nothing of the admin API."""

from enum import StrEnum
from typing import Final


class Scope(StrEnum):
    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    SCORE = "score"
    TOKENIZE = "tokenize"
    MODELS = "models"
    LIMITS = "limits"
    FILES = "files"
    BATCHES = "batches"
    """Runs requests of the endpoints whose scope the key has besides."""
    ADMIN = "admin"
    """The admin API, as far as the key's role reaches."""


INFERENCE: Final = frozenset(Scope) - {Scope.ADMIN}
"""What a key without a list of scopes has."""

_BY_PATH: Final = {
    "/v1/chat/completions": Scope.CHAT,
    "/v1/messages": Scope.CHAT,
    "/v1/messages/count_tokens": Scope.CHAT,
    "/v1/completions": Scope.COMPLETIONS,
    "/v1/responses": Scope.RESPONSES,
    "/v1/embeddings": Scope.EMBEDDINGS,
    "/v1/rerank": Scope.RERANK,
    "/rerank": Scope.RERANK,
    "/v1/score": Scope.SCORE,
    "/score": Scope.SCORE,
    "/v1/tokenize": Scope.TOKENIZE,
    "/v1/detokenize": Scope.TOKENIZE,
    "/tokenize": Scope.TOKENIZE,
    "/detokenize": Scope.TOKENIZE,
    "/v1/models": Scope.MODELS,
    "/v1/limits": Scope.LIMITS,
    "/v1/files": Scope.FILES,
    "/v1/batches": Scope.BATCHES,
}
_BY_FAMILY: Final = ("/v1/models", "/v1/responses", "/v1/files", "/v1/batches")
"""Whose scope opens all that is below them."""


def scope_of(path: str) -> Scope | None:
    """None for an endpoint without a scope of its own: only a key without a list opens it."""
    for family in _BY_FAMILY:
        if path.startswith(f"{family}/"):
            return _BY_PATH[family]
    return _BY_PATH.get(path)
