"""Parts of URLs."""

from urllib.parse import quote


def segment(text: str) -> str:
    """One path segment, whatever the text holds."""
    return quote(text, safe="")


def path(text: str) -> str:
    """A name that may hold slashes, such as a model's."""
    return quote(text, safe="/")
