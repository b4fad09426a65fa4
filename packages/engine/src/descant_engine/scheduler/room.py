"""How much of a step and of the batch a request may take, by what its share has of it already."""

from descant_engine.config import ResolvedConfig
from descant_engine.scheduler.step_draft import StepDraft
from descant_engine.share import Share

RESERVED_SHARE = 32
"""One of so many places and blocks is not for those who run more than their part."""
PROMPT_SHARE = 10
"""One of so many tokens of a step is for their prompts."""
MIN_PROMPT_TOKENS = 512


class Room:
    """Bounds what who comes rarely has to wait for: a place, a block, and the rest of a step that others fill."""

    def __init__(self, config: ResolvedConfig, num_blocks: int) -> None:
        self._num_places = config.max_num_seqs
        self._num_reserved_places = config.max_num_seqs // RESERVED_SHARE
        self._num_reserved_blocks = num_blocks // RESERVED_SHARE
        self._max_prompt_tokens = max(config.max_num_batched_tokens // PROMPT_SHARE, MIN_PROMPT_TOKENS)

    def is_over_part(self, share: Share) -> bool:
        """Whether the share runs clearly more than its part of the batch."""
        return share.is_over_part(self._num_places)

    def has_place(self, share: Share, num_running: int) -> bool:
        """Whether one more request of the share may join `num_running` others."""
        num_places = self._num_places
        if num_running >= num_places - self._num_reserved_places and share.is_over_part(num_places):
            num_places -= self._num_reserved_places
        return num_running < num_places

    def num_reserved_blocks(self, share: Share) -> int:
        """To be left free when a request of the share comes in."""
        return self._num_reserved_blocks if self.is_over_part(share) else 0

    def num_prompt_tokens(self, share: Share, step: StepDraft) -> int:
        """How many of the step's tokens the share's prompts may take. Who runs more than his part takes few, and none
        beside somebody who does not, whose first token would wait for them.
        """
        if not self.is_over_part(share):
            return step.num_tokens_left
        if step.has_prompt_within_part:
            return 0
        return max(min(self._max_prompt_tokens - step.num_prompt_tokens, step.num_tokens_left), 0)

    def note_prompt(self, share: Share, num_tokens: int, step: StepDraft) -> None:
        step.num_prompt_tokens += num_tokens
        if not self.is_over_part(share):
            step.has_prompt_within_part = True
