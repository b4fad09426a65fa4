"""Text that must not be seen."""

import hmac


class Secret:
    """Text that must not be seen: `repr`, `str` and encoders show nothing of it; `reveal()` is the one way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def matches(self, candidate: str) -> bool:
        """Compares in a time that doesn't depend on where the texts differ."""
        return hmac.compare_digest(self._text.encode(), candidate.encode("utf-8", "surrogateescape"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._text)

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)"
