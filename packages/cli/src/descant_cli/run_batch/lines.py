"""OpenAI's batch format: a request a line in, an answer a line out.

    in:  {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    out: {"id": "batch_req_1", "custom_id": "a", "response": {"status_code", "request_id", "body"}, "error": null}

A line that is no request has `error` {"code", "message"} and no response.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNSUPPORTED_URLS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/models")


@dataclass(frozen=True, slots=True)
class BatchRequest:
    number: int
    """Of its line, from 1."""
    custom_id: str
    url: str
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return self.custom_id


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no request."""

    number: int
    custom_id: str | None
    code: str
    message: str

    @property
    def key(self) -> str:
        """What tells its answer in the output from others: without a name of its own, its place."""
        return self.custom_id if self.custom_id is not None else request_id(self.number)


def read_lines(path: Path) -> Iterator[BatchRequest | BadLine]:
    """Every line of the input that is not blank, in order."""
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(BOM_UTF8) if number == 1 else line
            if not text.strip():
                continue
            parsed = _parse(number, text)
            if isinstance(parsed, BatchRequest) and parsed.custom_id in seen:
                # Its name is the first one's: the answer goes by the place.
                yield BadLine(number, None, "duplicate_custom_id", f"custom_id {parsed.custom_id!r} is used before")
                continue
            seen.add(parsed.key)
            yield parsed


def _parse(number: int, line: bytes) -> BatchRequest | BadLine:
    try:
        fields = json.loads(line)
    except ValueError as error:
        return BadLine(number, None, "invalid_json_line", f"line {number} is not JSON: {error}")
    if not isinstance(fields, dict):
        return BadLine(number, None, "invalid_request", f"line {number} must be an object")
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return BadLine(number, None, "missing_custom_id", f"line {number}: custom_id must be a string, and not empty")
    if (fault := _fault(fields)) is not None:
        return BadLine(number, custom_id, *fault)
    return BatchRequest(number, custom_id, fields["url"], fields["body"])


def _fault(fields: dict[str, Any]) -> tuple[str, str] | None:
    """(code, message) of what is wrong with a request, if anything is."""
    if fields.get("method", "POST") != "POST":
        return "invalid_method", f"method must be POST; got {fields['method']!r}"
    url, body = fields.get("url"), fields.get("body")
    if not isinstance(url, str) or not url.startswith("/v1/") or url in UNSUPPORTED_URLS:
        return "invalid_url", f"url must be an endpoint for requests such as /v1/chat/completions; got {url!r}"
    if not isinstance(body, dict):
        return "invalid_body", "body must be an object"
    if body.get("stream"):
        return "stream_not_supported", "body.stream: answers in a file are not streamed; leave it out"
    return None


def request_id(number: int) -> str:
    return f"batch_req_{number}"


def answer_line(request: BatchRequest, status: int, answer: Any) -> bytes:
    """`answer`: the endpoint's decoded JSON."""
    name = answer.get("id") if isinstance(answer, dict) else None
    response = {"status_code": status, "request_id": name or request_id(request.number), "body": answer}
    return _line(request.number, request.custom_id, response, None)


def error_line(line: BadLine) -> bytes:
    return _line(line.number, line.custom_id, None, {"code": line.code, "message": line.message})


def _line(number: int, custom_id: str | None, response: object, error: object) -> bytes:
    fields = {"id": request_id(number), "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
