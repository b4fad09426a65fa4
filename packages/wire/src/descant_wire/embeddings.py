"""POST /v1/embeddings. Reference: https://platform.openai.com/docs/api-reference/embeddings"""

from typing import Literal

from msgspec import Struct

from descant_wire.inputs import Input, inputs_of
from descant_wire.sampling import Priority, TokenId


class PoolingFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What requests for vectors and scores share."""

    model: str
    user: str | None = None
    """Harmless: nothing is done with it."""

    # vLLM's additions.
    truncate_prompt_tokens: int | None = None
    """Only so many tokens of each text are read, from its beginning; -1 is as many as the model takes."""
    priority: Priority | None = None
    """Lower runs earlier."""


class EmbeddingRequest(PoolingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    input: str | list[str | TokenId | list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    add_special_tokens: bool | None = None
    """vLLM's: whether a text gets the tokens that the model wants around it; true unless said otherwise."""

    def inputs(self) -> list[Input]:
        """Each gives one vector. Raises ApiError 400."""
        return inputs_of(self.input, "input")


class PoolingUsage(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int) -> "PoolingUsage":
        return cls(prompt_tokens=prompt_tokens, total_tokens=prompt_tokens)


class Embedding(Struct, frozen=True, kw_only=True):
    index: int
    embedding: list[float] | str
    """base64 is of float32, little-endian."""
    object: Literal["embedding"] = "embedding"


class EmbeddingResponse(Struct, frozen=True, kw_only=True):
    id: str
    created: int
    """Unix time, seconds."""
    model: str
    data: list[Embedding]
    usage: PoolingUsage
    object: Literal["list"] = "list"
