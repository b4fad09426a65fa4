"""POST /v1/rerank and /v1/score: Jina's and Cohere's body, and vLLM's."""

from typing import Literal

from msgspec import Struct

from descant_wire.embeddings import PoolingFields, PoolingUsage
from descant_wire.errors import invalid_request


class Document(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    text: str


class RerankRequest(PoolingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    query: str
    documents: list[str | Document]
    top_n: int | None = None
    """Only so many of the best; null or 0 is all."""
    return_documents: bool | None = None
    """Documents are in the answer unless this is false."""

    def texts(self) -> list[str]:
        """Raises ApiError 400: there are none, or top_n is negative."""
        if not self.documents:
            raise invalid_request("`documents` is empty.", param="documents")
        if self.top_n is not None and self.top_n < 0:
            raise invalid_request(f"`top_n` must be at least 0; got {self.top_n}.", param="top_n")
        return [document if isinstance(document, str) else document.text for document in self.documents]


class RerankResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    index: int
    """Of the document in the request."""
    relevance_score: float
    document: Document | None = None


class RerankResponse(Struct, frozen=True, kw_only=True):
    id: str
    model: str
    usage: PoolingUsage
    results: list[RerankResult]
    """The best first."""


class ScoreRequest(PoolingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    text_1: str | list[str]
    text_2: str | list[str]

    def pairs(self) -> list[tuple[str, str]]:
        """One with each, or the first with the first and so on. Raises ApiError 400."""
        first = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if not first or not second:
            raise invalid_request("`text_1` and `text_2` must not be empty.", param="text_2" if first else "text_1")
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            raise invalid_request(
                f"`text_1` has {len(first)} texts and `text_2` {len(second)}; give one and several, or as many.",
                param="text_2",
            )
        return list(zip(first, second, strict=True))


class Score(Struct, frozen=True, kw_only=True):
    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreResponse(Struct, frozen=True, kw_only=True):
    id: str
    created: int
    model: str
    data: list[Score]
    usage: PoolingUsage
    object: Literal["list"] = "list"
