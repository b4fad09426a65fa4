"""Files and batches, which the gateway stores and runs."""

import json
import time
from functools import cache
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError

from .asking import assert_refused, call
from .option import Api, OptionTable, Status
from .stack import MODEL, Stack

FILES, BATCHES = OptionTable(Api.FILES), OptionTable(Api.BATCHES)
PATIENCE_S = 60.0


def line(number: int, **body: Any) -> dict[str, Any]:
    asked = {"model": MODEL, "prompt": "Hello", "max_tokens": 4, "temperature": 0, **body}
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/completions", "body": asked}


CONTENT = "\n".join(json.dumps(each) for each in (line(1), line(2, temperature=9))).encode()


def upload(stack: Stack, **options: Any) -> Any:
    return call(stack.openai.files.create, {"file": ("lines.jsonl", CONTENT), "purpose": "batch", **options})


@cache
def shared_file(stack: Stack) -> str:
    """Uploads have a limit of their own."""
    found: str = upload(stack).id
    return found


def create(stack: Stack, **options: Any) -> Any:
    asked: dict[str, Any] = {"endpoint": "/v1/completions", "completion_window": "24h", **options}
    if "input_file_id" not in asked:
        asked["input_file_id"] = shared_file(stack)
    return call(stack.openai.batches.create, asked)


@FILES.works("file", "JSON lines; its size and a team's storage have limits that the operator sets.")
def file(stack: Stack) -> None:
    made = upload(stack)
    assert (made.bytes, made.filename, made.purpose) == (len(CONTENT), "lines.jsonl", "batch")
    assert stack.openai.files.content(made.id).content == CONTENT
    assert stack.openai.files.retrieve(made.id).id == made.id
    assert made.id in [each.id for each in stack.openai.files.list(purpose="batch", limit=5, order="desc")]
    assert stack.openai.files.delete(made.id).deleted
    with pytest.raises(NotFoundError):
        stack.openai.files.retrieve(made.id)


@FILES.works("purpose", "`batch`; others are refused.")
def purpose(stack: Stack) -> None:
    assert upload(stack).purpose == "batch"
    assert_refused(lambda **options: upload(stack, **options), "purpose", "fine-tune")


@FILES.works("expires_after", "An hour to 30 days after its creation.")
def expires_after(stack: Stack) -> None:
    made = upload(stack, expires_after={"anchor": "created_at", "seconds": 7200})
    assert made.expires_at - made.created_at == 7200
    assert_refused(lambda **options: upload(stack, **options), "expires_after", {"anchor": "created_at", "seconds": 60})


@BATCHES.works("input_file_id", "Every line is answered once, by its `custom_id`: outputs and errors in a file each.")
def input_file_id(stack: Stack) -> None:
    batch = ended(stack, create(stack).id)
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (2, 1, 1)
    (done,) = rows(stack, batch.output_file_id)
    assert done["custom_id"] == "line-1"
    assert done["response"]["body"]["choices"][0]["text"] == stack.completions.whole(max_tokens=4).text
    (failed,) = rows(stack, batch.error_file_id)
    assert failed["custom_id"] == "line-2"
    assert failed["response"]["body"]["error"]["param"] == "temperature"
    with pytest.raises(NotFoundError):
        create(stack, input_file_id="file-nobody")


def ended(stack: Stack, batch_id: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while (batch := stack.openai.batches.retrieve(batch_id)).status not in ("completed", "failed", "expired"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
    return batch


def rows(stack: Stack, file_id: str | None) -> list[Any]:
    assert file_id is not None
    return [json.loads(row) for row in stack.openai.files.content(file_id).text.splitlines()]


@BATCHES.works("endpoint", "/v1/chat/completions, /v1/completions, /v1/embeddings and /v1/responses.")
def endpoint(stack: Stack) -> None:
    assert create(stack).endpoint == "/v1/completions"
    assert_refused(lambda **options: create(stack, **options), "endpoint", "/v1/images/generations")


@BATCHES.works("completion_window", "24h, as for OpenAI.")
def completion_window(stack: Stack) -> None:
    batch = create(stack)
    assert batch.expires_at - batch.created_at == 24 * 3600
    assert_refused(lambda **options: create(stack, **options), "completion_window", "1h")


@BATCHES.works("metadata", "Up to 16 texts.")
def metadata(stack: Stack) -> None:
    batch = create(stack, metadata={"project": "apollo"})
    assert stack.openai.batches.retrieve(batch.id).metadata == {"project": "apollo"}
    assert batch.id in [each.id for each in stack.openai.batches.list(limit=20)]
    assert_refused(lambda **options: create(stack, **options), "metadata", {str(index): "x" for index in range(17)})


def output_expires_after(stack: Stack) -> None:
    with pytest.raises(BadRequestError, match="output_expires_after"):
        create(stack, output_expires_after={"anchor": "created_at", "seconds": 7200})


BATCHES.add("output_expires_after", Status.REFUSED, "Kept as long as other files.", output_expires_after)
