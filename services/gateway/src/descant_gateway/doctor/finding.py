"""What an examination found."""

from enum import StrEnum

from msgspec import Struct


class Verdict(StrEnum):
    GOOD = "ok"
    WARNING = "warning"
    """It works, and something will go wrong some day."""
    PROBLEM = "problem"
    """Requests fail, or money or prompts are at risk."""


class Finding(Struct, frozen=True):
    verdict: Verdict
    what: str
    to_do: str = ""


def good(what: str) -> Finding:
    return Finding(Verdict.GOOD, what)


def warning(what: str, to_do: str) -> Finding:
    return Finding(Verdict.WARNING, what, to_do)


def problem(what: str, to_do: str) -> Finding:
    return Finding(Verdict.PROBLEM, what, to_do)
