"""Keeps the garbage collector off what a serving process loaded for good."""

import gc
from typing import Final

YOUNG_OBJECTS: Final = 10_000
"""A request makes some hundred containers that live as long as it does. With Python's own bound of 700, those of all
requests under way are looked at again and again before any is done: a tenth of a request's CPU."""
ROUNDS: Final = 20
"""Of the young before the middle-aged are looked at, and of those before everything is."""


def settle_heap() -> None:
    """To be called once, when everything is loaded: what is alive then is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, ROUNDS, ROUNDS)
