"""What a line's reply tells of what it came to."""

import pytest
from tests.gateway.usage_records import usage_record

from descant_gateway.batches.line import LineReply
from descant_gateway.store.batch_work import LineUsage

RECORD = usage_record(prompt_tokens=9, cached_tokens=4, completion_tokens=5)


@pytest.mark.parametrize(
    ("body", "reasoning_tokens"),
    [
        (b'{"usage": {"completion_tokens_details": {"reasoning_tokens": 3}}}', 3),
        (b'{"usage": {"output_tokens_details": {"reasoning_tokens": 2}}}', 2),
        (b'{"usage": {"completion_tokens_details": {}}}', 0),
        (b'{"data": [], "usage": {"prompt_tokens": 9}}', 0),
        (b"no JSON", 0),
    ],
)
def test_usage_is_the_ledgers_and_reasoning_the_bodys(body: bytes, reasoning_tokens: int) -> None:
    reply = LineReply(status=200, body=body, retry_after_s=None, record=RECORD)
    assert reply.usage == LineUsage(input_tokens=9, cached_tokens=4, output_tokens=5, reasoning_tokens=reasoning_tokens)
    assert LineReply(status=429, body=body, retry_after_s=1, record=None).usage == LineUsage()
