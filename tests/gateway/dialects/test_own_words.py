"""Refusals name the field that the client sent, not the one that it was said as."""

import msgspec
import pytest

from descant_gateway.dialects.own_words import body_in_own_words, in_own_words
from descant_wire.errors import ErrorBody, ErrorDetail

NAMES = {"max_completion_tokens": "max_output_tokens", "messages": "input", "response_format": "text.format"}


def detail(message: str, param: str | None) -> ErrorDetail:
    return ErrorDetail(message=message, type="invalid_request_error", param=param, code="invalid_value")


@pytest.mark.parametrize(
    ("message", "param", "told", "own"),
    [
        (
            "max_completion_tokens must be in [1, 9]; got 0.",
            "max_completion_tokens",
            "max_output_tokens must be in [1, 9]; got 0.",
            "max_output_tokens",
        ),
        (
            "Expected `int` >= 0 in the field 'max_completion_tokens'.",
            "max_completion_tokens",
            "Expected `int` >= 0 in the field 'max_output_tokens'.",
            "max_output_tokens",
        ),
        ("`messages[2].content`: Expected `str`.", "messages[2].content", "`input`: Expected `str`.", "input"),
        ("The messages have too many tokens.", "messages", "The messages have too many tokens.", "input"),
        (
            "`response_format` cannot be met: no.",
            "response_format",
            "`text.format` cannot be met: no.",
            "text.format",
        ),
        ("`tools`: each needs a name.", "tools", "`tools`: each needs a name.", "tools"),
        ("Something else.", None, "Something else.", None),
    ],
)
def test_a_field_is_called_by_its_own_name(message: str, param: str | None, told: str, own: str | None) -> None:
    assert in_own_words(detail(message, param), NAMES) == detail(told, own)


def test_a_body_keeps_all_else() -> None:
    body = msgspec.json.encode(ErrorBody(error=detail("`messages` is empty.", "messages")))
    error = msgspec.json.decode(body_in_own_words(body, NAMES), type=ErrorBody).error
    assert error == detail("`input` is empty.", "input")
    assert body_in_own_words(b"<html>", NAMES) == b"<html>"
