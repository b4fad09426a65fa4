"""Descant's inference engine: continuous batching, paged attention, batched multi-LoRA.

A request's way: `frontend` (chat template, tokenizer) -> `async_engine` (process border) -> `engine`: `scheduler`
(with `cache`) -> StepPlan -> `runner` -> `models` -> `layers` -> kernels -> StepResult -> `scheduler` -> `frontend`
(detokenizer, stop strings).
"""

from typing import TYPE_CHECKING

from descant_engine.config import EngineConfig
from descant_engine.cpu_threads import spin_briefly
from descant_engine.sampling_params import SamplingParams
from descant_engine.speculation.config import SpeculativeConfig

if TYPE_CHECKING:
    from descant_engine.async_engine import AsyncEngine
    from descant_engine.llm import LLM

__all__ = ["LLM", "AsyncEngine", "EngineConfig", "SamplingParams", "SpeculativeConfig"]


def __getattr__(name: str) -> object:
    """LLM and AsyncEngine are imported when first used: a server's front needs no torch, a script no messages."""
    if name == "LLM":
        # A script's model runs in its own process: here is the last moment before torch is imported.
        spin_briefly()
        from descant_engine.llm import LLM

        return LLM
    if name == "AsyncEngine":
        from descant_engine.async_engine import AsyncEngine

        return AsyncEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
