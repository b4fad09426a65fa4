"""How often drafts turn out right."""

from dataclasses import dataclass

MEMORY_TOKENS = 8
"""A request's rate follows about so many of its last draft tokens: texts begin and cease to repeat themselves."""
SHARED_MEMORY_TOKENS = 64


def expected_tokens(rate: float, num_drafts: int) -> float:
    """How many tokens a step gives on average that checks `num_drafts` of them, each right with probability `rate` if
    those before it were (Leviathan et al., ICML 2023, arXiv 2211.17192, equation 1)."""
    if rate >= 1:
        return num_drafts + 1
    return (1 - rate ** (num_drafts + 1)) / (1 - rate)


@dataclass(slots=True)
class AcceptanceRate:
    """Of one draft token, given that those before it were right: an average that forgets."""

    rate: float
    memory: int = MEMORY_TOKENS

    def observe(self, num_right: int, has_wrong: bool) -> None:
        """`num_right` tokens were right, and the one after them wrong if `has_wrong`; those behind it say nothing."""
        keep = (1 - 1 / self.memory) ** num_right
        self.rate = 1 - (1 - self.rate) * keep
        if has_wrong:
            self.rate *= 1 - 1 / self.memory
