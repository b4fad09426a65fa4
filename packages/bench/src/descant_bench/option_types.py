"""What a measurement's option may be; argparse names the option whose value is none of it."""

import argparse
import json
from collections.abc import Callable
from typing import Any


def at_least(lowest: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `lowest` on."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}; got {value}")
        return value

    return whole_number


def above_zero(text: str) -> float:
    """Infinity is, too."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0; got {text}")
    return value


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object; got {text}")
    return value


def percentiles(text: str) -> list[float]:
    """ "50,99" -> [50.0, 99.0]"""
    shares = [float(share) for share in text.split(",")]
    if outside := [share for share in shares if not 0 <= share <= 100]:
        raise argparse.ArgumentTypeError(f"must be from 0 to 100; got {outside[0]:g}")
    return shares
