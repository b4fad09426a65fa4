"""Every failure as an answer in OpenAI's shape: the engine's exceptions, Litestar's, and what nobody foresaw."""

import logging
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException

from descant_engine.adapters.files import AdapterRefused
from descant_engine.async_engine import EngineDraining
from descant_engine.frontend import InvalidParams, InvalidPrompt, PromptTooLong, UnknownModel
from descant_engine.pooling import InvalidDimensions, UnsupportedTask
from descant_engine.pooling_inputs import InputTooLong
from descant_engine.scheduler.admission import QueueFull, RequestRefused
from descant_engine.serving.engine_client import EngineClosed, EngineDead
from descant_engine.serving.request_stream import RequestFailed
from descant_engine.text.chat_template import ChatTemplateError, UnreadVariable
from descant_engine.text.tokenizer import TextNotUnicode
from descant_wire.errors import (
    ApiError,
    ErrorDetail,
    context_length_exceeded,
    invalid_request,
    method_not_allowed,
    model_not_found,
    not_found,
    payload_too_large,
    rate_limit_exceeded,
    server_error,
    service_unavailable,
)

ENGINE_ERRORS = (
    *(PromptTooLong, InvalidPrompt, ChatTemplateError, TextNotUnicode, InvalidParams, UnknownModel),
    *(InputTooLong, InvalidDimensions, UnsupportedTask),
    AdapterRefused,
    *(QueueFull, RequestRefused, RequestFailed, EngineDraining, EngineDead),
)
"""What the engine raises, and says is fit for a client. Anything else is a bug, and a 500."""
RETRY_FULL_QUEUE_S = 1.0
RETRY_RESTART_S = 5.0

_log = logging.getLogger("descant_server")


class ClientLeft(Exception):
    """The client closed its connection before its answer was complete: nobody is left to be told anything."""


def from_engine(error: Exception, prompt_field: str, *, has_begun: bool = False) -> ApiError:
    """One of ENGINE_ERRORS as an answer; `prompt_field` is the wire's name for what is too long or malformed.

    `has_begun`: the engine had some of the call. If it died of that, whoever sees a 503 would kill the next engine.
    """
    match error:
        case UnknownModel():
            return model_not_found(error.name)
        case AdapterRefused():
            return invalid_request(_sentence(error), param="model", code="adapter_refused")
        case UnsupportedTask():
            return invalid_request(_sentence(error), param="model", code="unsupported_task")
        case InvalidDimensions():
            return invalid_request(f"{error}.", param="dimensions", code="invalid_value")
        case PromptTooLong() | InputTooLong() | RequestRefused():
            return context_length_exceeded(_sentence(error), param=prompt_field)
        case QueueFull():
            return rate_limit_exceeded(_sentence(error), retry_after_s=RETRY_FULL_QUEUE_S)
        case InvalidParams():
            return invalid_request(f"{error}.", param=field_of(str(error)), code="invalid_value")
        case UnreadVariable():
            return invalid_request(_sentence(error), param="chat_template_kwargs", code="invalid_value")
        case ValueError():
            return invalid_request(_sentence(error), param=prompt_field, code="invalid_value")
        case EngineDead() if has_begun and not isinstance(error, EngineClosed):
            return ApiError(
                500,
                ErrorDetail(
                    message="The engine died while it had this request.", type="server_error", code="engine_died"
                ),
            )
        case EngineDraining() | EngineDead():
            return service_unavailable(
                "The server is shutting down or its engine has died.", retry_after_s=RETRY_RESTART_S
            )
        case _:
            return ApiError(500, ErrorDetail(message=_sentence(error), type="server_error", code="request_failed"))


def field_of(message: str) -> str:
    """The engine's messages about sampling values begin with the field's name."""
    return message.partition(" ")[0].removesuffix(":")


def _sentence(error: Exception) -> str:
    message = str(error)
    return f"{message[:1].upper()}{message[1:]}."


def from_framework(error: HTTPException, method: str, path: str) -> ApiError:
    """Litestar's own refusals."""
    if error.status_code == 404:
        return not_found(f"There is no {method} {path} here.", code="unknown_url")
    if error.status_code == 405:
        return method_not_allowed(f"{path} does not take {method}.")
    if error.status_code == 413:
        return payload_too_large("The request body is larger than this server accepts.")
    if error.status_code >= 500:
        return server_error()
    return ApiError(error.status_code, ErrorDetail(message=error.detail, type="invalid_request_error"))


def answer_api_error(_: Request[Any, Any, Any], error: ApiError) -> Response[bytes]:
    return Response(error.body, status_code=error.status, headers=error.headers, media_type="application/json")


def answer_framework_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    return answer_api_error(request, from_framework(error, request.method, request.url.path))


def answer_client_left(_: Request[Any, Any, Any], __: ClientLeft) -> Response[bytes]:
    # nginx's number for it; it is seen in access logs only.
    return Response(b"", status_code=499)


def answer_unforeseen(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer_api_error(request, server_error())
