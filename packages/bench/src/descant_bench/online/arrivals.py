"""When requests arrive, and which adapter each of them names."""

import random
from collections.abc import Iterator, Sequence


def arrival_times(count: int, request_rate: float, burstiness: float, rng: random.Random) -> Iterator[float]:
    """Seconds after the start. The gaps are gamma-distributed with `burstiness` as shape: 1 is a Poisson process, less
    is burstier, more is steadier. An infinite rate is everything at once."""
    now = 0.0
    for _ in range(count):
        yield now
        if request_rate != float("inf"):
            now += rng.gammavariate(burstiness, 1 / (request_rate * burstiness))


def choose_names(names: Sequence[str], count: int, exponent: float, rng: random.Random) -> list[str]:
    """The i-th name in proportion to 1 / i^exponent: 0 is uniform, 1 is Zipf's law."""
    return rng.choices(names, weights=[1 / (rank + 1) ** exponent for rank in range(len(names))], k=count)
