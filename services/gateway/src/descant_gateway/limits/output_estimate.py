"""How long an answer will probably be, learned for each key and model: for requests that name no max_tokens."""

from collections import OrderedDict, deque
from typing import Final
from uuid import UUID

NUM_REMEMBERED: Final = 64
"""Answers of one key and model."""
NUM_NEEDED: Final = 20
"""With fewer, the model's longest answer is reserved."""
PERCENTILE: Final = 0.95
_MAX_PAIRS: Final = 10_000
_RANKED_EVERY: Final = 8
"""Answers between two looks at the percentile: sorting for each would cost more than it tells."""


class _Answers:
    __slots__ = ("_estimate", "_lengths", "_num_since")

    def __init__(self) -> None:
        self._lengths: deque[int] = deque(maxlen=NUM_REMEMBERED)
        self._estimate: int | None = None
        self._num_since = 0

    @property
    def estimate(self) -> int | None:
        return self._estimate

    def add(self, num_tokens: int) -> None:
        self._lengths.append(num_tokens)
        self._num_since += 1
        if len(self._lengths) >= NUM_NEEDED and (self._estimate is None or self._num_since >= _RANKED_EVERY):
            ranked = sorted(self._lengths)
            self._estimate = max(1, ranked[int(PERCENTILE * (len(ranked) - 1))])
            self._num_since = 0


class OutputEstimates:
    """The last answers of the 10,000 pairs of key and model that were used last. An underestimate becomes debt."""

    def __init__(self) -> None:
        self._answers: OrderedDict[tuple[UUID, str], _Answers] = OrderedDict()

    def estimate(self, key_id: UUID, model: str, longest: int) -> int:
        """The 95th percentile of what came, `longest` at most and while too little is known."""
        answers = self._answers.get((key_id, model))
        known = None if answers is None else answers.estimate
        return longest if known is None else min(known, longest)

    def learn(self, key_id: UUID, model: str, num_tokens: int) -> None:
        answers = self._answers.get((key_id, model))
        if answers is None:
            answers = self._answers[(key_id, model)] = _Answers()
            if len(self._answers) > _MAX_PAIRS:
                self._answers.popitem(last=False)
        else:
            self._answers.move_to_end((key_id, model))
        answers.add(num_tokens)
