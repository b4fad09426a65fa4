"""A batch's file as it comes in, piece by piece."""

import json
from codecs import BOM_UTF8
from collections.abc import AsyncIterator

import pytest

from descant_gateway.batches.input_file import InputFile

CHAT = "/v1/chat/completions"
LINES = b"".join(
    json.dumps({"custom_id": f"c{n}", "method": "POST", "url": CHAT, "body": {"model": "ü"}}).encode() + b"\r\n"
    for n in range(3)
)


async def _read(data: bytes, size: int) -> InputFile:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    file = InputFile(CHAT)
    await file.read(chunks())
    return file


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("start", [b"", BOM_UTF8], ids=["plain", "byte order mark"])
async def test_pieces_and_a_byte_order_mark_change_nothing(start: bytes, size: int) -> None:
    file = await _read(start + LINES, size)
    assert file.faults == []
    assert [line.custom_id for line in file.lines] == ["c0", "c1", "c2"]


async def test_a_byte_order_mark_in_the_middle_is_a_fault() -> None:
    file = await _read(LINES + BOM_UTF8 + LINES, 10_000)
    assert (file.faults[0].code, file.faults[0].line) == ("invalid_json_line", 4)


@pytest.mark.parametrize(
    ("custom_id", "code"),
    [
        (rb"a\u0000b", "invalid_custom_id"),
        (rb"\ud800", "invalid_json_line"),
        (rb"\udc00x", "invalid_json_line"),
        (b"\xed\xa0\x80", "invalid_json_line"),
    ],
    ids=["NUL", "first half of a pair", "second half of a pair", "first half of a pair, as bytes"],
)
async def test_an_id_that_postgresql_can_not_store_is_a_fault(custom_id: bytes, code: str) -> None:
    line = b'{"custom_id": "%s", "method": "POST", "url": "%s", "body": {"model": "m"}}\n' % (custom_id, CHAT.encode())
    file = await _read(LINES + line, 10_000)
    assert [(fault.code, fault.line) for fault in file.faults] == [(code, 4)]
