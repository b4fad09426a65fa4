"""What ends a request early. Refusals are `descant_wire.errors.ApiError`; here is what only the gateway raises."""

from collections.abc import Mapping

from litestar.exceptions import HTTPException, ValidationException

from descant_gateway.endpoints import ENDPOINTS, refused_family
from descant_wire.errors import ApiError, ErrorDetail, invalid_request, method_not_allowed, not_found, server_error


class ClientLeft(Exception):
    """The client closed its connection before its answer was complete: nobody is left to be told anything."""


class ClientTimeUp(ApiError):
    """504: the time that the client itself gave, shorter than it might have had, is over. No backend is at fault."""

    def __init__(self, message: str) -> None:
        super().__init__(504, ErrorDetail(message=message, type="server_error", code="timeout"))


def request_timeout(message: str) -> ApiError:
    """408."""
    return ApiError(408, ErrorDetail(message=message, type="invalid_request_error", code="request_timeout"))


def headers_too_large(limit: int) -> ApiError:
    """431."""
    message = f"The request's headers are together larger than {limit} bytes."
    return ApiError(431, ErrorDetail(message=message, type="invalid_request_error", code="headers_too_large"))


def model_not_allowed(model: str, who: str) -> ApiError:
    """403 for a model that exists and that this key or team may not use."""
    message = f"This {who} may not use the model {model!r}. GET /v1/models lists those that it may."
    return ApiError(403, ErrorDetail(message=message, type="permission_error", param="model", code="model_not_allowed"))


def _no_such_path(method: str, path: str) -> ApiError:
    family = refused_family(path)
    if family is None:
        return not_found(f"There is no {method} {path} here.", code="unknown_url")
    served = ", ".join(ENDPOINTS)
    return not_found(
        f"{path} is for {family}, which this gateway does not serve. It serves {served}.", code="unsupported_endpoint"
    )


def _odd_parameter(problem: Mapping[str, str]) -> ApiError:
    """400 for an option in a request's address."""
    name = problem.get("key", "")
    return invalid_request(f"`{name}`: {problem['message']}.", param=name or None, code="invalid_value")


def data_must_stay(model: str, team: str) -> ApiError:
    """403 for a model whose only backends are outside the house."""
    message = (
        f"The model {model!r} is served outside the house, where the data of the team {team!r} may not go. "
        "An administrator can allow it."
    )
    return ApiError(403, ErrorDetail(message=message, type="permission_error", param="model", code="data_must_stay"))


def from_framework(error: HTTPException, method: str, path: str) -> ApiError:
    """Litestar's own refusals (no such route, wrong method, unreadable body) in OpenAI's shape."""
    if error.status_code == 404:
        return _no_such_path(method, path)
    if error.status_code == 405:
        return method_not_allowed(f"{path} does not take {method}.")
    if error.status_code >= 500:
        return server_error()
    if isinstance(error, ValidationException) and isinstance(error.extra, list) and error.extra:
        return _odd_parameter(error.extra[0])
    return ApiError(error.status_code, ErrorDetail(message=error.detail, type="invalid_request_error"))
