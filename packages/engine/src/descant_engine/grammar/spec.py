"""What a client may demand of the form of an output."""

from dataclasses import dataclass
from enum import StrEnum

MAX_SPEC_CHARACTERS = 1 << 20


class BackendName(StrEnum):
    """The libraries that compile specs."""

    XGRAMMAR = "xgrammar"
    LLGUIDANCE = "llguidance"


class GrammarKind(StrEnum):
    """What a spec's text is written in."""

    JSON_SCHEMA = "json_schema"
    """The text of a schema; `{"type": "object"}` is any JSON object."""
    REGEX = "regex"
    """The whole output matches it, from first to last character."""
    CHOICE = "choice"
    """A JSON list of strings: the output is one of them."""
    EBNF = "grammar"
    """EBNF with `root ::= ...`, or Lark with `start: ...`."""
    STRUCTURAL_TAG = "structural_tag"
    """xgrammar's JSON: free text in which certain beginnings are followed by text of a certain form."""
    ALTERNATIVES = "alternatives"
    """`alternatives`' JSON: the output is one of several sequences of texts, tokens and JSON values."""


class GrammarRefused(ValueError):
    """No output can have this form, or none that we can guarantee; the message says why, for the client."""


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """One demand. Equal specs share one compiled grammar.

    Raises:
        GrammarRefused: the text is too long.
    """

    kind: GrammarKind
    text: str
    after: str = ""
    """The grammar begins behind the first occurrence of this text, which must come; what is before it is free."""
    opening: str = ""
    """With `after`: there is a free part only if the output begins with this text."""

    def __post_init__(self) -> None:
        if len(self.text) > MAX_SPEC_CHARACTERS:
            raise GrammarRefused(f"it has {len(self.text)} characters; at most {MAX_SPEC_CHARACTERS} are accepted")
