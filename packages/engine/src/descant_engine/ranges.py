"""Numbers from outside: what is out of its range is refused, with its name, its value and the range."""

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1


def require(name: str, value: float, low: float, high: float, *, above_low: bool = False) -> None:
    """Raises ValueError for a value outside [low, high], or (low, high] with `above_low`."""
    # NaN fails both comparisons, and so is refused.
    inside = low < value <= high if above_low else low <= value <= high
    if not inside:
        bracket = "(" if above_low else "["
        raise ValueError(f"{name} must be in {bracket}{_plain(low)}, {_plain(high)}]; got {value!r}")


def require_given(name: str, value: float | None, low: float, high: float) -> None:
    """The same, but that None is nothing to refuse."""
    if value is not None:
        require(name, value, low, high)


def _plain(bound: float) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)
