"""How busy the engine is and which adapters it holds, for gateways that ask several times a second."""

import time
from collections.abc import Mapping
from typing import Final

import msgspec

from descant_engine.async_engine import AsyncEngine
from descant_engine.cache.adapter_cache import AdapterTier
from descant_engine.scheduler.stats import SchedulerStats
from descant_wire.load import EngineLoad, Tier

_TIERS: Final[Mapping[AdapterTier, Tier]] = {AdapterTier.DEVICE: "gpu", AdapterTier.HOST: "host"}

_encode = msgspec.json.Encoder().encode


class LoadReport:
    """Reads the engine's latest statistics. Thousands of adapters are looked at only when those are new."""

    def __init__(self) -> None:
        self._stats: SchedulerStats | None = None
        self._adapters: dict[str, Tier] = {}
        # Not from zero: a server that was started anew must not name its first state as its predecessor did.
        self._residency = time.time_ns() // 1_000_000

    def render(self, engine: AsyncEngine, known: int | None, *, verifies_identity: bool) -> bytes:
        """JSON of an EngineLoad; without adapters if `known` is the residency that is still true."""
        self._look(engine)
        stats = engine.stats()
        return _encode(
            EngineLoad(
                num_running=stats.num_running,
                num_waiting=stats.num_waiting,
                num_below_default=stats.num_below_default,
                max_running=engine.config.max_num_seqs,
                num_queued_tokens=stats.num_queued_tokens,
                kv_usage=round(stats.block_usage, 4),
                residency=self._residency,
                verifies_identity=verifies_identity,
                adapters=None if known == self._residency else self._adapters,
            )
        )

    def _look(self, engine: AsyncEngine) -> None:
        stats = engine.stats()
        if stats is self._stats:
            return
        self._stats = stats
        tiers = {each.digest: tier for each in stats.adapters if (tier := _TIERS.get(each.tier)) is not None}
        adapters = {
            name: tier
            for name, manifest in engine.adapters.items()
            if (tier := tiers.get(manifest.digest or "")) is not None
        }
        if adapters != self._adapters:
            self._adapters = adapters
            self._residency += 1
