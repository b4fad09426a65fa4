"""Finds the first stop string in a text that arrives piece by piece.

The first one is the one that is complete first, and the longest of those that are complete at once: generation ends
there, however the text was cut into tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Scanned(NamedTuple):
    text: str
    """Safe to show: no stop string can begin in it."""
    stop_string: str | None
    """The stop string that ended the text, if one did."""


class StopStrings:
    """Holds back exactly the longest end of the text that could still become a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        # Longest first: of two that end together, the one that began earlier wins.
        self._matchers = [_Matcher(pattern) for pattern in sorted(stop, key=len, reverse=True)]
        self._held = ""

    def scan(self, text: str) -> Scanned:
        """Takes the next piece; gives the text that has become safe. Not to be called after a stop string."""
        if not self._matchers:
            return Scanned(text, None)
        seen = self._held + text
        for end, symbol in enumerate(text, start=len(self._held) + 1):
            # Every matcher sees every character, so no generator here.
            complete = [matcher.pattern for matcher in self._matchers if matcher.advance(symbol)]
            if complete:
                self._held = ""
                return Scanned(seen[: end - len(complete[0])], complete[0])
        num_safe = len(seen) - max((matcher.num_matched for matcher in self._matchers), default=0)
        self._held = seen[num_safe:]
        return Scanned(seen[:num_safe], None)

    def flush(self) -> str:
        """The text still held back: no more will come."""
        held, self._held = self._held, ""
        return held


class _Matcher:
    """Knuth, Morris and Pratt (1977), with the table of borders grown only as far as the text has matched: a long
    pattern costs nothing until it is matched, and each character O(1), amortised."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.num_matched = 0
        self._border = [0]

    def advance(self, symbol: str) -> bool:
        """True if the text up to `symbol` ends with the pattern."""
        matched = self._longest(self.num_matched, symbol)
        if matched > len(self._border):
            self._border.append(self._longest(self._border[-1], symbol))
        self.num_matched = matched
        return matched == len(self.pattern)

    def _longest(self, matched: int, symbol: str) -> int:
        while matched and self.pattern[matched] != symbol:
            matched = self._border[matched - 1]
        return matched + 1 if self.pattern[matched] == symbol else 0
