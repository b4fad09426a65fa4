"""How many events carried content, read together or one by one."""

from hypothesis import given
from hypothesis import strategies as st

from descant_gateway.usage.content import ContentCount

EVENTS = (
    (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', 1),
    (b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n', 0),
    (b'7f\r\ndata: {"choices":[{"delta":{"reasoning":"\\"text\\":"}}]}\n\n\r\n', 1),
    (b'data: "content"\n\n', 0),
    (b': "a comment"\n\n', 0),
    (b'data: {"choices":[{"delta":{"content":"' + b"long" * 3000 + b'"}}]}\n\n', 1),
)


@given(st.lists(st.sampled_from(EVENTS), max_size=30), st.integers(0, 30))
def test_the_count_is_the_events_own(events: list[tuple[bytes, int]], asked_after: int) -> None:
    content = ContentCount()
    for index, (event, _) in enumerate(events):
        content.add(event)
        if index == asked_after:
            assert content.total == sum(number for _, number in events[: index + 1])
    assert content.total == sum(number for _, number in events)
