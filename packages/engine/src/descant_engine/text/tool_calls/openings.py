"""What may stand before calls: whitespace, and the marks with which a family begins them."""

from collections.abc import Sequence

from descant_engine.text.tool_calls.events import prefix_at_end
from descant_engine.text.tool_calls.json_calls import WHITESPACE

MAX_LEAD_CHARACTERS = 1 << 12
"""An output that has come so far without the beginning of a call is content: what is held back is searched again with
each piece of the text, and some outputs are blank without end."""


def behind_openings(text: str, openings: Sequence[str]) -> str:
    """`text` without them; empty as long as more of them may follow. `openings`: longest first."""
    text = text.lstrip(WHITESPACE)
    for opening in openings:
        if text.startswith(opening):
            text = text.removeprefix(opening).lstrip(WHITESPACE)
        elif prefix_at_end(text, opening) == len(text):
            return ""
    return text
