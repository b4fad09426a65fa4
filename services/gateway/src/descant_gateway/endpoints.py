"""The paths of OpenAI's API, and of vLLM's beside it, that are relayed, and what is particular to each."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct


class Endpoint(Struct, frozen=True, kw_only=True):
    path: str
    prompt_fields: tuple[str, ...]
    """What the model reads: counted for the reservation."""
    generates: bool = False
    """Answers with tokens of its own, as many as the request's limit allows."""
    has_usage_chunk: bool = False
    """Its streams tell their usage in a last chunk, if `stream_options.include_usage` asks for it."""


CHAT: Final = "/v1/chat/completions"
MESSAGES: Final = "/v1/messages"
COUNT_TOKENS: Final = "/v1/messages/count_tokens"
RESPONSES: Final = "/v1/responses"
TOKENIZE: Final = "/tokenize"

_ALL: Final = (
    Endpoint(path=CHAT, prompt_fields=("messages", "tools"), generates=True, has_usage_chunk=True),
    Endpoint(path="/v1/completions", prompt_fields=("prompt",), generates=True, has_usage_chunk=True),
    Endpoint(path=MESSAGES, prompt_fields=("system", "messages", "tools"), generates=True),
    Endpoint(path=RESPONSES, prompt_fields=("input", "instructions", "tools"), generates=True),
    Endpoint(path="/v1/embeddings", prompt_fields=("input",)),
    Endpoint(path="/v1/rerank", prompt_fields=("query", "documents")),
    Endpoint(path="/rerank", prompt_fields=("query", "documents")),
    Endpoint(path="/v1/score", prompt_fields=("text_1", "text_2")),
    Endpoint(path="/score", prompt_fields=("text_1", "text_2")),
    Endpoint(path=COUNT_TOKENS, prompt_fields=()),
    Endpoint(path=TOKENIZE, prompt_fields=()),
    Endpoint(path="/detokenize", prompt_fields=()),
)
ENDPOINTS: Final[Mapping[str, Endpoint]] = MappingProxyType({endpoint.path: endpoint for endpoint in _ALL})

REFUSED_FAMILIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "/v1/audio": "speech",
        "/v1/images": "images",
        "/v1/videos": "videos",
        "/v1/realtime": "realtime sessions",
        "/v1/uploads": "uploads in parts",
        "/v1/fine_tuning": "fine-tuning",
        "/v1/moderations": "moderation",
        "/v1/assistants": "assistants",
        "/v1/threads": "assistants",
        "/v1/vector_stores": "vector stores",
        "/v1/conversations": "stored conversations",
        "/v1/containers": "containers",
        "/v1/evals": "evals",
        "/v1/messages": "a part of Anthropic's API other than messages themselves",
    }
)
"""Parts of other APIs that clients know and that are not served here, by name."""


def refused_family(path: str) -> str | None:
    """What a path that is not served would be for; None if nobody knows it."""
    parts = path.split("/", 3)
    return REFUSED_FAMILIES.get("/".join(parts[:3])) if len(parts) > 2 else None
