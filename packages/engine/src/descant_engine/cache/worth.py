"""What a copy in memory is worth keeping, and whom to evict: GreedyDual-Size-Frequency.

Cherkasova ("Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching", HPL-98-69): a copy's worth is
the age of its memory when it was last used, plus how often it is used times what a byte of it costs to get back. The
least worthy goes first, and its worth becomes the memory's age: whatever is not used again is overtaken in the end.
Of two equals, the one that was not used for longer goes first.

Costs are per block, so an adapter's size cancels out, and in units of what the pool's other content costs: one cached
block of a prefix, computed anew. Use is counted in doublings, since an adapter that was in fashion for an hour must not
stay for a week.
"""

from dataclasses import dataclass
from math import log2

COPY_COST = 0.08
"""Of a block from pinned host memory: 2 MiB at 50 GB/s are 0.04 ms, 16 tokens of an 8B model on an H200 0.5 ms."""
READ_COST = 2.0
"""Of a block from its file: 2 MiB at 2 GB/s, digest and layout included, are 1 ms."""
PREFIX_COST = 1.0
MIN_REUSE = 0.05
"""The least share of prefix tokens that is counted on to be found again."""
HALF_LIFE_USES = 4096
"""After so many requests for adapters an old one counts for half."""


@dataclass(slots=True)
class Popularity:
    """Decayed count of one adapter's uses."""

    count: float = 0.0
    counted_at: int = 0
    """The clock, which ticks with every use of any adapter."""

    def use(self, clock: int) -> None:
        self.count = self.at(clock) + 1
        self.counted_at = clock

    def at(self, clock: int) -> float:
        return float(self.count * 0.5 ** ((clock - self.counted_at) / HALF_LIFE_USES))


def adapter_worth(age: float, popularity: float, cost: float, prefix_reuse: float = 1.0) -> float:
    """`prefix_reuse`: which share of prefix tokens is found again, where prefixes are what competes."""
    return age + cost * log2(1 + popularity) / max(prefix_reuse, MIN_REUSE)
