"""What the collector leaves alone, and that it still takes away what nobody can reach."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from descant_gateway.process.heap import YOUNG_OBJECTS, settle_heap


@pytest.fixture(autouse=True)
def collector_as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


class Ring:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_loaded_is_not_looked_at_again() -> None:
    loaded = Ring()
    settle_heap()
    assert all(each is not loaded for each in gc.get_objects())
    assert gc.get_freeze_count() > 0


def test_rings_of_objects_are_still_collected_without_being_told_to() -> None:
    settle_heap()
    gone = weakref.ref(Ring())
    kept = [[] for _ in range(YOUNG_OBJECTS + 1)]
    assert len(kept) > YOUNG_OBJECTS
    assert gone() is None
