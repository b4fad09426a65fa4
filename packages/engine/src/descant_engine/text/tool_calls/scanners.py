"""Where a value ends, symbol by symbol: nothing is read twice, however the text is cut into pieces."""


class _Scanner:
    """Text with brackets and strings, and where in them it is."""

    opening: str
    closing: str
    quotes: str

    def __init__(self) -> None:
        self._symbols: list[str] = []
        self._depth = 0
        self._quote = ""
        """The one that ends the string; empty outside of strings."""
        self._is_escaped = False

    def __len__(self) -> int:
        return len(self._symbols)

    @property
    def text(self) -> str:
        """As far as it has come."""
        return "".join(self._symbols)

    def text_from(self, start: int) -> str:
        return "".join(self._symbols[start:])

    def take(self, symbol: str) -> bool:
        """True if the text is complete with it."""
        self._symbols.append(symbol)
        if self._is_escaped:
            self._is_escaped = False
        elif self._quote:
            self._is_escaped = symbol == "\\"
            self._quote = "" if symbol == self._quote else self._quote
        elif symbol in self.quotes:
            self._quote = symbol
        else:
            self._depth += (symbol in self.opening) - (symbol in self.closing)
        return not self._quote and self._is_end(symbol)

    def take_all(self, text: str) -> int | None:
        """Takes `text` up to the end, and gives the place behind it; None if it is not in this piece."""
        return next((place for place, symbol in enumerate(text, start=1) if self.take(symbol)), None)

    def _is_end(self, symbol: str) -> bool:
        """Whether `symbol`, taken already and in no string, is the last one."""
        raise NotImplementedError


class JsonValue(_Scanner):
    """Any JSON value, to its last character."""

    opening, closing, quotes = "{[", "}]", '"'

    @property
    def is_object(self) -> bool:
        return self._symbols[:1] == ["{"]

    @property
    def is_bare(self) -> bool:
        """A number or a literal, which ends where something else begins."""
        return bool(self._symbols) and self._depth == 0 and not self._quote

    def _is_end(self, symbol: str) -> bool:
        return self._depth == 0 and (symbol in self.closing or symbol in self.quotes)


class PythonCall(_Scanner):
    """A call in Python's syntax, to the parenthesis that closes it; a bracket that closes nothing ends it too."""

    opening, closing, quotes = "([{", ")]}", "\"'"

    def _is_end(self, symbol: str) -> bool:
        return self._depth <= 0 and symbol in self.closing
