import json

import pytest

from descant_wire import errors


def test_the_body_is_openais() -> None:
    error = errors.invalid_request("no", param="top_p", code="invalid_value")
    assert json.loads(error.body) == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "top_p", "code": "invalid_value"}
    }
    assert error.headers == {}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.invalid_request("x"), 400, None),
        (errors.unsupported_field("x", param="n"), 400, "unsupported_parameter"),
        (errors.context_length_exceeded("x"), 400, "context_length_exceeded"),
        (errors.invalid_api_key("x"), 401, "invalid_api_key"),
        (errors.permission_denied("x"), 403, "permission_denied"),
        (errors.model_not_found("x"), 404, "model_not_found"),
        (errors.not_found("x"), 404, "not_found"),
        (errors.method_not_allowed("x"), 405, "method_not_allowed"),
        (errors.payload_too_large("x"), 413, "payload_too_large"),
        (errors.unsupported_media_type("x"), 415, "unsupported_media_type"),
        (errors.rate_limit_exceeded("x", retry_after_s=1), 429, "rate_limit_exceeded"),
        (errors.server_error(), 500, "internal_error"),
        (errors.bad_gateway("x"), 502, "bad_gateway"),
        (errors.service_unavailable("x", retry_after_s=1), 503, "service_unavailable"),
        (errors.gateway_timeout("x"), 504, "timeout"),
    ],
)
def test_each_error_knows_its_status(error: errors.ApiError, status: int, code: str | None) -> None:
    assert (error.status, error.detail.code) == (status, code)


@pytest.mark.parametrize(
    ("seconds", "header", "milliseconds"),
    [(0.0, "1", "1"), (0.2, "1", "200"), (1.0, "1", "1000"), (1.001, "2", "1001")],
)
def test_retry_after_is_never_too_early(seconds: float, header: str, milliseconds: str) -> None:
    error = errors.rate_limit_exceeded("slow down", retry_after_s=seconds)
    assert error.headers == {"retry-after": header, "retry-after-ms": milliseconds}
