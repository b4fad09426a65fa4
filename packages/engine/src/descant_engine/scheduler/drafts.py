"""Puts drafts into steps, where memory has room for them anyway."""

from descant_engine.cache.block_pool import BlockPool
from descant_engine.cache.kv_cache import KvCache
from descant_engine.scheduler.step_draft import StepDraft
from descant_engine.speculation.speculation import Speculation

STEP_SHARE = 2
"""One of so many tokens of a step may be a draft; the rest is for prompts."""


def add_drafts(step: StepDraft, speculation: Speculation, kv: KvCache, pool: BlockPool) -> None:
    """To a step of requests that decode, one token each. Nobody loses a block for a draft."""
    proposals = speculation.drafts(step.requests, step.num_tokens_left // STEP_SHARE)
    for index, (request, proposal) in enumerate(zip(tuple(step.requests), proposals, strict=True)):
        if not proposal.num_tokens:
            continue
        room = kv.num_slots(request) - request.num_computed_tokens
        new_block_ids: tuple[int, ...] = ()
        num_tokens = request.num_computed_tokens + proposal.num_tokens
        if kv.num_new_blocks(request, num_tokens) <= pool.num_free_blocks - len(step.requests):
            new_block_ids = kv.grow(request, num_tokens)
        else:
            proposal = proposal.first(room)
        if proposal.num_tokens:
            step.add_drafts(index, proposal, new_block_ids)
