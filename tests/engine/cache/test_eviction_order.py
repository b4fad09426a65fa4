from pathlib import Path

from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.cache.adapter_record import Adapter
from descant_engine.cache.eviction_order import MIN_ENTRIES, EvictionOrder


def adapter(name: str) -> Adapter:
    return Adapter(AdapterManifest(name, Path(name), ()), num_blocks=1)


def test_an_order_that_is_only_written_to_does_not_grow():
    order = EvictionOrder()
    one, other = adapter("one"), adapter("other")
    order.put(other, 5000.0)
    for worth in range(10_000):
        order.put(one, worth)
        if worth % 3:
            order.discard(one)
    assert len(order._heap) <= MIN_ENTRIES
    assert order.first() == (5000.0, other)
    order.put(one, 1.0)
    assert order.first() == (1.0, one)
    assert order.first(keep={"one"}) == (5000.0, other)


def test_sweeping_keeps_what_is_in_the_order():
    order = EvictionOrder()
    adapters = [adapter(str(number)) for number in range(3 * MIN_ENTRIES)]
    for turn in range(5):
        for number, each in enumerate(adapters):
            order.put(each, turn + number)
    assert len(order) == len(adapters)
    for number, each in enumerate(adapters):
        assert order.first() == (4 + number, each)
        order.discard(each)
    assert order.first() is None
