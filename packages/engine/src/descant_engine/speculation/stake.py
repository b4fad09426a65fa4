"""How much time drafts may lose: what they have won of late, and little more.

How right drafts are and what a step with them takes are both guesses at first, of a new engine and of new requests. So
a step checks no more tokens than what is staked pays for if all of them are wrong. Whoever is right doubles his stake
within a step or two; whoever is wrong has lost a plain step's time in all.
"""

FIRST_STAKE = 1.0
"""In plain steps: of a new engine, and the most that new requests are left of what others have won."""
LARGEST_STAKE = 8.0
STAKE_SHARE = 0.005
"""Of the time of plain steps, so much is added: for who lost everything and would be right now."""


class Stake:
    """Counted in plain steps of those who run, so that it means the same for one request and for sixty."""

    def __init__(self) -> None:
        self._steps = FIRST_STAKE

    def pays_for(self, plain_seconds: float) -> float:
        """The most that a step may take, in seconds, where one without drafts takes `plain_seconds`."""
        return plain_seconds * (1 + self._steps)

    def took(self, seconds: float, plain_seconds: float) -> None:
        """A step with drafts did."""
        self._steps -= seconds / plain_seconds - 1

    def won(self, num_tokens: int, num_requests: int) -> None:
        """Drafts of one of so many requests were right."""
        self._steps = min(self._steps + num_tokens / num_requests, LARGEST_STAKE)

    def save(self) -> None:
        """There was a plain step."""
        if self._steps < FIRST_STAKE:
            self._steps += STAKE_SHARE

    def share_with_newcomer(self) -> None:
        """Somebody new runs, of whose drafts nothing is known."""
        self._steps = min(self._steps, FIRST_STAKE)
