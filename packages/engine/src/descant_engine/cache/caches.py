"""The block pool with the two that share it: tokens' KV and adapters."""

from typing import NamedTuple

from descant_engine.cache.adapter_cache import AdapterCache
from descant_engine.cache.block_pool import BlockPool
from descant_engine.cache.kv_cache import KvCache
from descant_engine.config import ResolvedConfig


class Caches(NamedTuple):
    pool: BlockPool
    kv: KvCache
    adapters: AdapterCache

    @classmethod
    def of(cls, config: ResolvedConfig, num_blocks: int, num_adapter_slots: int) -> "Caches":
        """Empty. Arguments are `Scheduler`'s."""
        pool = BlockPool(num_blocks)
        kv = KvCache(pool, config.user.block_size, config.user.model, enable_prefix_caching=config.caches_prefixes)
        return cls(pool, kv, AdapterCache(config, pool, num_adapter_slots if config.user.enable_lora else 0))
