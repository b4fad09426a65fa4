"""The admin API's refusals: problem details (RFC 9457), with the `error` of all of Descant as one of their members."""

import re
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import ValidationException
from msgspec import Struct

from descant_gateway.store.errors import AlreadyExists, InUse, Invalid, NotFound, StoreError
from descant_gateway.store.session import is_outage
from descant_wire.errors import ApiError, ErrorDetail, invalid_request, not_found, server_error, service_unavailable

RETRY_AFTER_S: Final = 2.0
_QUOTED: Final = re.compile("`([^`]+)`")

log = structlog.get_logger(__name__)

AnyRequest = Request[Any, Any, Any]


class Problem(Struct, frozen=True, kw_only=True):
    """https://www.rfc-editor.org/rfc/rfc9457; `error` is what every other API of Descant answers with."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str | None
    error: ErrorDetail


def refuse_api(_: AnyRequest, error: ApiError) -> Response[bytes]:
    return _response(error)


def refuse(_: AnyRequest, error: StoreError) -> Response[bytes]:
    return _response(_from_store(error))


def refuse_input(_: AnyRequest, error: ValidationException) -> Response[bytes]:
    """Names the first field that is wrong, and what it should be."""
    problems: list[dict[str, str]] = error.extra if isinstance(error.extra, list) else []
    if not problems:
        return _response(invalid_request(error.detail))
    message, key = problems[0].get("message", error.detail), problems[0].get("key", "")
    if key != "data":
        return _response(invalid_request(f"{key}: {message}", param=key))
    if message == "'data'":
        return _response(invalid_request("The request needs a JSON body."))
    field = _QUOTED.search(message)
    is_about_field = field is not None and "field" in message
    return _response(invalid_request(message, param=field[1] if field and is_about_field else None))


def refuse_depth(_: AnyRequest, error: RecursionError) -> Response[bytes]:
    return _response(invalid_request("The JSON body is nested too deeply."))


def refuse_encoding(_: AnyRequest, error: UnicodeDecodeError) -> Response[bytes]:
    return _response(invalid_request(f"The JSON body is not UTF-8: {error.reason} at byte {error.start}."))


def fail_database(request: AnyRequest, error: Exception) -> Response[bytes]:
    if is_outage(error):
        return _response(service_unavailable("The database is away; nothing was changed.", retry_after_s=RETRY_AFTER_S))
    log.error("an admin request failed", path=request.url.path, exc_info=error)
    return _response(server_error())


def _from_store(error: StoreError) -> ApiError:
    message = str(error)
    match error:
        case NotFound():
            return not_found(message)
        case Invalid():
            return invalid_request(message, param=error.field)
        case AlreadyExists():
            return _conflict(message, "already_exists")
        case InUse():
            return _conflict(message, "in_use")
    return invalid_request(message)


def _conflict(message: str, code: str) -> ApiError:
    return ApiError(409, ErrorDetail(message=message, type="invalid_request_error", code=code))


def _response(error: ApiError) -> Response[bytes]:
    problem = Problem(
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.detail.message,
        code=error.detail.code,
        error=error.detail,
    )
    body = msgspec.json.encode(problem)
    return Response(body, status_code=error.status, headers=error.headers, media_type="application/problem+json")
