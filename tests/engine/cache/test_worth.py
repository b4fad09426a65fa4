import random
from collections import OrderedDict
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant_engine.cache.eviction_order import EvictionOrder
from descant_engine.cache.worth import COPY_COST, READ_COST, Popularity, adapter_worth

NUM_ADAPTERS = 1000
CAPACITY = 64
NUM_USES = 30_000


class _Named:
    def __init__(self, digest: str) -> None:
        self.digest = digest


def zipf_uses(alpha: float, seed: int) -> list[int]:
    weights = list(accumulate(1 / rank**alpha for rank in range(1, NUM_ADAPTERS + 1)))
    return random.Random(seed).choices(range(NUM_ADAPTERS), cum_weights=weights, k=NUM_USES)


def lru_hit_rate(uses: list[int]) -> float:
    cache: OrderedDict[int, None] = OrderedDict()
    num_hits = 0
    for use in uses:
        num_hits += use in cache
        cache[use] = None
        cache.move_to_end(use)
        if len(cache) > CAPACITY:
            cache.popitem(last=False)
    return num_hits / len(uses)


def worth_hit_rate(uses: list[int]) -> float:
    adapters = [_Named(str(index)) for index in range(NUM_ADAPTERS)]
    popularity = [Popularity() for _ in adapters]
    order = EvictionOrder()
    age, num_hits = 0.0, 0
    for clock, use in enumerate(uses):
        num_hits += adapters[use] in order  # type: ignore[operator]
        popularity[use].use(clock)
        order.put(adapters[use], adapter_worth(age, popularity[use].at(clock), READ_COST))  # type: ignore[arg-type]
        if len(order) > CAPACITY and (least := order.first()) is not None:
            age = max(age, least[0])
            order.discard(least[1])
    return num_hits / len(uses)


@pytest.mark.parametrize(("alpha", "gain"), [(1.0, 0.05), (1.5, 0.015)])
def test_more_is_found_than_by_recency_alone(alpha: float, gain: float) -> None:
    uses = zipf_uses(alpha, seed=1)
    assert worth_hit_rate(uses) > lru_hit_rate(uses) + gain


def test_a_fashion_is_forgotten() -> None:
    """All requests go to one half of the adapters, and then to the other: what was in fashion has to make room."""
    first = [use // 2 for use in zipf_uses(1.0, seed=1)]
    second = [NUM_ADAPTERS - 1 - use // 2 for use in zipf_uses(1.0, seed=2)]
    alone = worth_hit_rate(second)
    after = worth_hit_rate(first + second) * 2 - worth_hit_rate(first)
    assert after > alone - 0.02


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 9)), max_size=40), st.sets(st.sampled_from("abcdef")))
def test_the_least_worthy_that_may_go_comes_first(puts: list[tuple[str, float]], keep: set[str]) -> None:
    order = EvictionOrder()
    adapters = {name: _Named(name) for name in "abcdef"}
    worths: dict[str, float] = {}
    for name, worth in puts:
        order.put(adapters[name], worth)  # type: ignore[arg-type]
        worths[name] = worth
    order.discard(adapters["a"])  # type: ignore[arg-type]
    worths.pop("a", None)
    left = {name: worth for name, worth in worths.items() if name not in keep}
    least = order.first(keep)
    assert (least is None) == (not left)
    assert least is None or least[0] == min(left.values()) == left[least[1].digest]
    assert len(order) == len(worths)


def test_what_is_dear_to_get_back_or_often_used_is_worth_more() -> None:
    rising = [adapter_worth(0, 1, COPY_COST), adapter_worth(0, 5, COPY_COST), adapter_worth(0, 1, READ_COST)]
    rising.append(adapter_worth(10, 0, COPY_COST))
    assert all(less < more for less, more in pairwise(rising))
    assert adapter_worth(0, 1, COPY_COST, prefix_reuse=0.1) > adapter_worth(0, 1, COPY_COST, prefix_reuse=0.9)
