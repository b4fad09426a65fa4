"""What the scheduler tells the metrics."""

from dataclasses import dataclass

from descant_engine.cache.adapter_cache import AdapterResidency, AdapterTier


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftStats:
    """Of speculation, counted since start."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_by_place: tuple[int, ...] = ()
    """How many drafts had their first token accepted, how many their second, and so on."""


NO_DRAFTS = DraftStats()


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """A snapshot. Requests and usage are of now; tokens, preemptions, loads and evictions are counted since start."""

    num_running: int
    num_waiting: int
    """All that are not running, those waiting for an adapter or a grammar included."""
    num_waiting_for_adapter: int
    num_queued_tokens: int
    """Tokens of all these that are known and not computed yet: the work ahead before anybody new is served."""
    num_below_default: int = 0
    """Running or waiting, of lower priority than 0: batches, which nobody waits for."""
    num_waiting_for_grammar: int = 0
    """Until it is compiled."""
    block_usage: float
    """Share of the pool that is held, 0 to 1; cached prefixes that nobody uses count as free."""
    prefix_query_tokens: int
    """Tokens of admitted requests."""
    prefix_hit_tokens: int
    """Those of them found in the prefix cache."""
    num_preemptions: int
    num_adapter_loads: int
    """Into the pool."""
    num_adapter_evictions: int
    """From the pool."""
    adapters: tuple[AdapterResidency, ...]
    """Every registered adapter."""
    drafts: DraftStats = NO_DRAFTS

    def num_adapters(self, tier: AdapterTier) -> int:
        """How many have `tier` as the highest that they are in."""
        return sum(adapter.tier is tier for adapter in self.adapters)
