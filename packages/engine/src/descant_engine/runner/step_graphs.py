"""The CUDA graphs of decode and of small mixed steps, and which of them to capture before they are needed."""

from collections.abc import Iterator

from torch import Tensor

from descant_engine.adapters.manifest import TargetModule
from descant_engine.config import ResolvedConfig
from descant_engine.forward_context import LayerKv, LoraTables
from descant_engine.models.llama import LlamaForCausalLM
from descant_engine.runner.cuda_graphs import (
    ALL_MODULES,
    ATTENTION_MODULES,
    NO_MODULES,
    Decoded,
    DecodeGraphs,
    GraphMemory,
    padded_size,
)
from descant_engine.runner.input_batch import InputBatch, IntArray
from descant_engine.runner.mixed_graphs import MAX_TOKENS, MixedGraphs
from descant_engine.runner.request_states import RequestStates

ModuleSets = tuple[frozenset[TargetModule], ...]


class StepGraphs:
    def __init__(
        self,
        model: LlamaForCausalLM,
        states: RequestStates,
        kv_caches: tuple[LayerKv, ...],
        lora_tables: LoraTables | None,
        config: ResolvedConfig,
    ) -> None:
        num_rows = max(MAX_TOKENS, padded_size(config.max_num_seqs))
        memory = GraphMemory(num_rows, config.shape.hidden_size, next(model.parameters()).dtype, states.device)
        self._decode = DecodeGraphs(model, states, kv_caches, lora_tables, config.user.block_size, memory)
        self._mixed = MixedGraphs(model, states, kv_caches, lora_tables, memory)
        module_sets = (NO_MODULES,) if lora_tables is None else (NO_MODULES, ALL_MODULES, ATTENTION_MODULES)
        self._captures = self._capture_all(module_sets, config.max_num_seqs)

    def decode(self, rows: IntArray, positions: IntArray, modules: frozenset[TargetModule]) -> Decoded:
        """Of requests `rows` [n], whose newest tokens are at `positions` [n]; `modules`: what their adapters change.
        Valid, as what `mixed` returns, until the next call."""
        return self._decode.replay(rows, positions, modules)

    def mixed(self, batch: InputBatch, modules: frozenset[TargetModule]) -> Tensor | None:
        """[num_tokens, hidden_size]; None if the step is to be launched kernel by kernel."""
        return self._mixed.replay(batch, modules)

    def capture_next(self) -> bool:
        """Captures one graph more, in about a tenth of a second; False if all that is planned are there."""
        return next(self._captures, False)

    def _capture_all(self, module_sets: ModuleSets, max_num_seqs: int) -> Iterator[bool]:
        """The base's before the adapters', decode's before those of mixed steps."""
        for modules in module_sets:
            for graphs in (self._decode, self._mixed):
                for _ in graphs.capture_missing(modules, max_num_seqs):
                    yield True
