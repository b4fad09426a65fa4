"""The decoder gives the same events however the stream is cut, and whatever line ends it uses."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant_wire.sse import DONE_EVENT, SseDecoder, SseEvent, SseTooLarge, encode_event


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


def decode(pieces: list[bytes]) -> list[SseEvent]:
    decoder = SseDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


line_text = st.binary(max_size=12).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b""))
messages = st.lists(st.lists(line_text, min_size=1, max_size=3), max_size=6)


@given(messages, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 10_000), max_size=30))
def test_events_survive_any_cut_and_line_end(datas: list[list[bytes]], line_end: bytes, places: list[int]) -> None:
    stream = b"".join(
        b": comment" + line_end + b"".join(b"data: " + line + line_end for line in lines) + line_end for lines in datas
    )
    assert decode(cut(stream, places)) == [SseEvent(b"\n".join(lines)) for lines in datas]


@given(st.binary(max_size=200), st.lists(st.integers(0, 10_000), max_size=30))
def test_garbage_is_the_same_garbage_however_it_is_cut(stream: bytes, places: list[int]) -> None:
    assert decode(cut(stream, places)) == decode([stream])


@given(st.lists(line_text, max_size=5))
def test_what_is_encoded_is_decoded(datas: list[bytes]) -> None:
    stream = b"".join(encode_event(data) for data in datas) + DONE_EVENT
    events = decode([bytes([byte]) for byte in stream])
    assert [event.data for event in events[:-1]] == datas
    assert events[-1].is_done


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"\xef\xbb\xbfdata: a\n\n", [SseEvent(b"a")]),
        (b"data:a\n\n", [SseEvent(b"a")]),
        (b"data:  a\n\n", [SseEvent(b" a")]),
        (b"data\n\n", [SseEvent(b"")]),
        (b"event: error\ndata: a\n\ndata: b\n\n", [SseEvent(b"a", b"error"), SseEvent(b"b")]),
        (b"id: 1\nretry: 3\nunknown: x\n\n", []),
        (b"data: unfinished\n", []),
        (b"data: a\r\n\r\n", [SseEvent(b"a")]),
    ],
)
def test_fields(stream: bytes, events: list[SseEvent]) -> None:
    assert decode([stream]) == events
    assert decode([bytes([byte]) for byte in stream]) == events


def test_an_event_beyond_the_limit_is_refused() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    assert len(decoder.feed(b"data: small\n\n" * 50)) == 50
    with pytest.raises(SseTooLarge, match="100 bytes"):
        for _ in range(20):
            decoder.feed(b"data: 0123456789\n")
