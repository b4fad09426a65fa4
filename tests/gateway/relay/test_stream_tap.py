"""What a stream looks like on the client's side, however the network cuts it."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.upstream import Upstream

from descant_gateway.relay.stream_tap import EventTooLarge, StreamTap
from descant_gateway.usage.meter import Meter


def through(stream: bytes, cuts: list[int], *, hides_usage: bool) -> tuple[bytes, Meter]:
    meter = Meter()
    tap = StreamTap(meter, hides_usage=hides_usage)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    out = b"".join(tap.feed(stream[start:end]) for start, end in itertools.pairwise(edges))
    return out + tap.finish(), meter


@given(
    cuts=st.lists(st.integers(0, 10_000), max_size=40),
    line_end=st.sampled_from(["\n", "\r\n"]),
    num_tokens=st.integers(0, 8),
)
def test_the_usage_chunk_is_taken_out_and_every_other_byte_stays(
    cuts: list[int], line_end: str, num_tokens: int
) -> None:
    upstream = Upstream(line_end=line_end, num_tokens=num_tokens)
    out, meter = through(upstream.stream_bytes(with_usage=True), cuts, hides_usage=True)
    assert out == upstream.stream_bytes(with_usage=False)
    assert meter.usage is not None
    assert (meter.usage.prompt_tokens, meter.usage.completion_tokens) == (7, num_tokens)
    assert meter.content.total == num_tokens


@given(cuts=st.lists(st.integers(0, 10_000), max_size=40))
def test_a_client_that_asked_gets_every_byte(cuts: list[int]) -> None:
    stream = Upstream().stream_bytes(with_usage=True)
    out, meter = through(stream, cuts, hides_usage=False)
    assert out == stream
    assert meter.usage is not None


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=10))
def test_any_bytes_come_out_as_they_came_in(stream: bytes, cuts: list[int]) -> None:
    out, _ = through(stream, cuts, hides_usage=False)
    assert out.startswith(stream)
    assert out.removeprefix(stream) in (b"", b"\n\n")  # the empty line that a backend forgot


def test_events_pass_as_soon_as_they_are_complete() -> None:
    tap = StreamTap(Meter(), hides_usage=True)
    assert tap.feed(b"data: 1\n\nda") == b"data: 1\n\n"
    assert tap.feed(b"ta: 2\n") == b""
    assert tap.feed(b"\n") == b"data: 2\n\n"


def test_running_usage_beside_content_is_kept_and_shown() -> None:
    event = b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":4,"completion_tokens":2}}\n\n'
    out, meter = through(event, [], hides_usage=True)
    assert out == event
    assert meter.usage is not None
    assert meter.usage.completion_tokens == 2


@pytest.mark.parametrize(
    "usage", [b'"many"', b'{"prompt_tokens":-4}', b'{"prompt_tokens":"4"}', b"[" * 5000, b'{"completion_tokens":1e400}']
)
def test_nonsense_for_usage_is_passed_on_and_not_believed(usage: bytes) -> None:
    event = b'data: {"choices":[],"usage":' + usage + b"}\n\n"
    out, meter = through(event, [], hides_usage=True)
    assert out == event
    assert meter.usage is None


def test_content_is_counted_whatever_its_field() -> None:
    fields = (b'"content":"a"', b'"content": "a"', b'"text":"a"', b'"reasoning_content":"a"', b'"arguments":"{"')
    events = b"".join(b'data: {"choices":[{"delta":{' + field + b"}}]}\n\n" for field in fields)
    empty = b'data: {"choices":[{"delta":{"content":""}}]}\n\ndata: {"choices":[{"delta":{"content":null}}]}\n\n'
    _, meter = through(events + empty, [], hides_usage=True)
    assert meter.content.total == len(fields)


def test_an_event_without_end_is_not_collected_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("descant_gateway.relay.stream_tap._MAX_PENDING_BYTES", 100)
    tap = StreamTap(Meter(), hides_usage=True)
    tap.feed(b"x" * 90)
    with pytest.raises(EventTooLarge):
        tap.feed(b"x" * 20)


def test_a_long_event_in_many_pieces_costs_what_its_bytes_cost() -> None:
    tap, piece = StreamTap(Meter(), hides_usage=False), b"x" * 256
    began = time.process_time()
    for _ in range(8192):
        assert tap.feed(piece) == b""
    assert tap.feed(b"\r\n\r") == b""
    assert tap.feed(b"\ndata") == piece * 8192 + b"\r\n\r\n"
    assert (
        time.process_time() - began < 0.5
    )  # seconds of CPU; looking at all of it for each piece takes many times that
