from hypothesis import example, given, settings
from hypothesis import strategies as st

from descant_engine.text.stop_strings import StopStrings

letters = st.sampled_from("ab")
patterns = st.lists(st.text(letters, min_size=1, max_size=5), min_size=0, max_size=4)


def ends_first(text: str, stop: list[str]) -> tuple[str, str | None]:
    """What the whole text comes to, by trying every end."""
    for end in range(1, len(text) + 1):
        found = [pattern for pattern in stop if text[:end].endswith(pattern)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def held_back(text: str, stop: list[str]) -> int:
    """The longest end of the text that begins a stop string."""
    return max((n for pattern in stop for n in range(1, len(pattern)) if text.endswith(pattern[:n])), default=0)


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(st.text(letters, max_size=4), max_size=12), stop=patterns)
@example(pieces=["a", "a", "b"], stop=["aab", "b"])
@example(pieces=["ab", "aba", "bb"], stop=["ababb"])
def test_stops_where_the_whole_text_would_and_holds_no_more_than_needed(pieces: list[str], stop: list[str]) -> None:
    strings = StopStrings(stop)
    shown, seen = "", ""
    for piece in pieces:
        seen += piece
        text, stop_string = strings.scan(piece)
        shown += text
        expected, expected_stop = ends_first(seen, stop)
        assert stop_string == expected_stop
        if stop_string is not None:
            assert shown == expected
            return
        assert shown == seen[: len(seen) - held_back(seen, stop)]
    assert shown + strings.flush() == seen


def test_a_long_stop_string_costs_nothing_until_it_matches() -> None:
    strings = StopStrings(["x" * 10_000_000])
    assert strings.scan("abc") == ("abc", None)
    assert strings.scan("xx") == ("", None)
    assert strings.scan("y") == ("xxy", None)
