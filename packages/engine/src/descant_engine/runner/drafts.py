"""Which drafts were right: those that are what was drawn in their places.

Every sample is drawn as if there were no drafts, from the same logits with the same random numbers, so an output is the
same with speculation and without, whatever the temperature. For a draft that does not depend on those numbers this is
the rejection sampling of Leviathan et al. (ICML 2023, arXiv 2211.17192) and Chen et al. (arXiv 2302.01318): it is right
with the probability p of its token, and otherwise what was drawn comes from p without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from descant_engine.scheduler.plan import ScheduledRequest


@dataclass(frozen=True, slots=True)
class PendingDrafts:
    """One step's, on their way to the host or there."""

    lengths: tuple[int, ...]
    """Of each request that samples, in batch order; 0 for those without."""
    token_ids: Tensor
    """[sum of lengths] on the host, side by side."""

    @classmethod
    def of(cls, scheduled: Sequence[ScheduledRequest]) -> "PendingDrafts":
        """Those that the plan gives."""
        token_ids = [token_id for request in scheduled for token_id in request.draft_token_ids]
        lengths = tuple(request.num_draft_tokens for request in scheduled if request.samples)
        return cls(lengths, torch.tensor(token_ids))

    def accepted(self, sampled: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
        """Of each request's samples those up to the first that is not its draft, and with it. Only after the step's
        event."""
        drafts = iter(self.token_ids.tolist())
        samples = iter(sampled)
        kept = []
        for length in self.lengths:
            run = [next(samples) for _ in range(length + 1)]
            is_right = [next(drafts) == token_id for _, token_id in run[:-1]]
            kept += run[: (*is_right, False).index(False) + 1]
        return tuple(kept)
