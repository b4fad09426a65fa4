"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`. An error knows its status.

Reference: https://platform.openai.com/docs/guides/error-codes
"""

import math

import msgspec
from msgspec import Struct


class ErrorDetail(Struct, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None = None
    """The request's field that is at fault."""
    code: str | None = None
    """What a program branches on."""


class ErrorBody(Struct, frozen=True, kw_only=True):
    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error: raise it anywhere under a route, the app turns it into a response.

    `retry_after_s` becomes the Retry-After header, rounded up to whole seconds as the header demands, and the
    exact retry-after-ms that OpenAI's clients prefer.
    """

    def __init__(self, status: int, detail: ErrorDetail, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail.message)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(ErrorBody(error=self.detail))

    @property
    def headers(self) -> dict[str, str]:
        if self.retry_after_s is None:
            return {}
        return {
            "retry-after": str(max(1, math.ceil(self.retry_after_s))),
            "retry-after-ms": str(max(1, math.ceil(self.retry_after_s * 1000))),
        }


def invalid_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request itself is wrong."""
    return ApiError(400, ErrorDetail(message=message, type="invalid_request_error", param=param, code=code))


def unsupported_field(message: str, *, param: str) -> ApiError:
    """400: a field or value of the OpenAI API that we know and do not honour, or a field nobody knows."""
    return invalid_request(message, param=param, code="unsupported_parameter")


def context_length_exceeded(message: str, *, param: str = "messages") -> ApiError:
    """400: prompt and completion don't fit the context; the message holds both numbers."""
    return invalid_request(message, param=param, code="context_length_exceeded")


def invalid_api_key(message: str) -> ApiError:
    """401."""
    return ApiError(401, ErrorDetail(message=message, type="invalid_request_error", code="invalid_api_key"))


def permission_denied(message: str, *, param: str | None = None, code: str = "permission_denied") -> ApiError:
    """403: a valid key that may not do this."""
    return ApiError(403, ErrorDetail(message=message, type="permission_error", param=param, code=code))


def model_not_found(model: str) -> ApiError:
    """404 for a model id that is not served here."""
    message = f"The model {model!r} does not exist. GET /v1/models lists those that do."
    return ApiError(
        404, ErrorDetail(message=message, type="invalid_request_error", param="model", code="model_not_found")
    )


def not_found(message: str, *, param: str | None = None, code: str = "not_found") -> ApiError:
    """404."""
    return ApiError(404, ErrorDetail(message=message, type="invalid_request_error", param=param, code=code))


def method_not_allowed(message: str) -> ApiError:
    """405."""
    return ApiError(405, ErrorDetail(message=message, type="invalid_request_error", code="method_not_allowed"))


def payload_too_large(message: str) -> ApiError:
    """413."""
    return ApiError(413, ErrorDetail(message=message, type="invalid_request_error", code="payload_too_large"))


def unsupported_media_type(message: str) -> ApiError:
    """415."""
    return ApiError(415, ErrorDetail(message=message, type="invalid_request_error", code="unsupported_media_type"))


def rate_limit_exceeded(message: str, *, retry_after_s: float, limit: str = "requests") -> ApiError:
    """429: `limit` is what ran out, "requests" or "tokens"."""
    detail = ErrorDetail(message=message, type=limit, code="rate_limit_exceeded")
    return ApiError(429, detail, retry_after_s=retry_after_s)


def server_error(message: str = "The server failed to process the request. It has been logged.") -> ApiError:
    """500: our fault. The message never holds internals."""
    return ApiError(500, ErrorDetail(message=message, type="server_error", code="internal_error"))


def bad_gateway(message: str) -> ApiError:
    """502: an upstream failed or answered nonsense."""
    return ApiError(502, ErrorDetail(message=message, type="server_error", code="bad_gateway"))


def service_unavailable(message: str, *, retry_after_s: float, code: str = "service_unavailable") -> ApiError:
    """503: nothing wrong with the request; it may work later."""
    return ApiError(
        503, ErrorDetail(message=message, type="service_unavailable", code=code), retry_after_s=retry_after_s
    )


def gateway_timeout(message: str) -> ApiError:
    """504."""
    return ApiError(504, ErrorDetail(message=message, type="server_error", code="timeout"))
