import gc
from collections.abc import Iterator

import pytest

from descant_engine.steady_heap import collector_paused, imports_settled, settle_heap


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_alive_is_not_looked_at_again_and_garbage_still_is() -> None:
    class Node:
        """May lie in a cycle."""

    loaded = [Node() for _ in range(1000)]
    settle_heap()
    assert gc.get_freeze_count() > len(loaded)
    assert not any(isinstance(thing, Node) for thing in gc.get_objects())
    node = Node()
    node.itself = node  # type: ignore[attr-defined]
    del node
    assert gc.collect() >= 1


def test_nothing_is_collected_in_a_pause() -> None:
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_imports_are_looked_at_neither_while_they_come_nor_later() -> None:
    frozen, before = gc.get_freeze_count(), gc.get_stats()[2]["collections"]
    with imports_settled():
        modules = [[] for _ in range(100_000)]  # type: list[list[object]]
        assert gc.get_stats()[2]["collections"] == before
    assert gc.get_freeze_count() >= frozen + len(modules)
    assert gc.isenabled()
