"""Wires the Litestar application: routes, the guard in front of them, and a shape for every error."""

from litestar import Litestar
from litestar.di import Provide
from litestar.exceptions import HTTPException

from descant_server.auth import require_api_key
from descant_server.errors import (
    ClientLeft,
    answer_api_error,
    answer_client_left,
    answer_framework_error,
    answer_unforeseen,
)
from descant_server.routes import adapters, chat, completions, embeddings, health, internal, models, scores, tokenize
from descant_server.service import Service
from descant_wire.errors import ApiError

ROUTES = (
    chat.create_chat_completion,
    completions.create_completion,
    embeddings.create_embeddings,
    scores.rerank,
    scores.score,
    models.list_models,
    models.show_model,
    adapters.load_adapter,
    adapters.unload_adapter,
    tokenize.tokenize_text,
    tokenize.detokenize_tokens,
    internal.show_load,
    internal.show_usage,
    health.health,
    health.ready,
    health.show_version,
    health.show_metrics,
)


def build_app(service: Service) -> Litestar:
    """The application around a service, whose engine may still be loading."""
    return Litestar(
        route_handlers=ROUTES,
        guards=[require_api_key(service.config.api_keys)],
        dependencies={"service": Provide(lambda: service, sync_to_thread=False)},
        exception_handlers={
            ApiError: answer_api_error,
            HTTPException: answer_framework_error,
            ClientLeft: answer_client_left,
            Exception: answer_unforeseen,
        },
        request_max_body_size=service.config.max_body_bytes,
        openapi_config=None,
        logging_config=None,
    )
