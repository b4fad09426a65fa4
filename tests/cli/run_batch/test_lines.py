"""Lines of OpenAI's batch format: what is a request, what is wrong with the others, and what an output holds."""

import json
from pathlib import Path

import pytest

from descant_cli.run_batch.lines import BadLine, BatchRequest, answer_line, error_line, read_lines
from descant_cli.run_batch.output import BadOutput, OutputFile

GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}


def test_a_request(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n" + json.dumps(GOOD) + "\n\n")
    assert list(read_lines(path)) == [BatchRequest(2, "a", "/v1/chat/completions", {"model": "m"})]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert list(read_lines(path)) == [BatchRequest(1, "a", "/v1/chat/completions", {"model": "m"})]


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [
        ("{", "invalid_json_line", "line 1"),
        ("[]", "invalid_request", "object"),
        (json.dumps(GOOD | {"custom_id": None}), "missing_custom_id", "custom_id"),
        (json.dumps(GOOD | {"method": "GET"}), "invalid_method", "GET"),
        (json.dumps(GOOD | {"url": "/metrics"}), "invalid_url", "/metrics"),
        (json.dumps(GOOD | {"url": "/v1/load_lora_adapter"}), "invalid_url", "load_lora"),
        (json.dumps(GOOD | {"body": "text"}), "invalid_body", "body"),
        (json.dumps(GOOD | {"body": {"stream": True}}), "stream_not_supported", "body.stream"),
    ],
)
def test_a_line_that_is_no_request(line: str, code: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(line + "\n")
    (bad,) = read_lines(path)
    assert isinstance(bad, BadLine)
    assert bad.code == code
    assert named in bad.message
    written = json.loads(error_line(bad))
    assert (written["response"], written["error"]["code"]) == (None, code)


def test_the_second_of_two_equal_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n")
    first, second = read_lines(path)
    assert isinstance(first, BatchRequest)
    assert isinstance(second, BadLine)
    assert (second.code, second.key) == ("duplicate_custom_id", "batch_req_2")


def test_an_output_is_read_and_its_torn_line_removed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    request = BatchRequest(1, "a", "/v1/completions", {})
    whole = answer_line(request, 200, {"id": "cmpl-1"}) + error_line(BadLine(2, None, "invalid_json_line", "?"))
    path.write_bytes(whole + b'{"id": "batch_req_3", "custom_id": "c", "resp')
    with OutputFile.open(path) as output:
        assert output.finished == {"a", "batch_req_2"}
        assert output.num_failed == 1
        output.write(b"next\n")
    assert path.read_bytes() == whole + b"next\n"


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nand more")
    with pytest.raises(BadOutput, match=r"notes\.txt, line 1 is no answer"):
        OutputFile.open(path)
    assert path.read_text() == "my notes\nand more"
