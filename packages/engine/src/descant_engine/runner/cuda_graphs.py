"""Decode steps as CUDA graphs: one token a request, everything from the rows' tokens to hidden states in one launch.

A graph is captured when its batch size is first needed, or before, while nobody waits. The host copies one short array
in, and the graph gathers the rest from the request rows on the device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from descant_engine.adapters.manifest import TargetModule
from descant_engine.forward_context import AttentionInputs, LayerKv, LoraInputs, LoraTables, StepContext, step_context
from descant_engine.models.llama import LlamaForCausalLM
from descant_engine.runner.input_batch import IntArray
from descant_engine.runner.request_states import RequestStates
from descant_engine.runner.transfer import send
from descant_engine.steady_heap import collector_paused

if TYPE_CHECKING:
    from descant_kernels import DecodeInputs

NO_MODULES = frozenset[TargetModule]()
ATTENTION_MODULES = frozenset({TargetModule.Q_PROJ, TargetModule.K_PROJ, TargetModule.V_PROJ, TargetModule.O_PROJ})
ALL_MODULES = frozenset(TargetModule)


def padded_size(num_requests: int) -> int:
    """The batch size whose graph serves this many requests: powers of two up to 8, then multiples of 8."""
    if num_requests > 8:
        return -(-num_requests // 8) * 8
    return 1 << (num_requests - 1).bit_length()


def covering_modules(modules: frozenset[TargetModule]) -> frozenset[TargetModule]:
    """The set whose graph serves a step that changes `modules`: few sets, so few graphs."""
    return next(known for known in (NO_MODULES, ATTENTION_MODULES, ALL_MODULES) if modules <= known)


class GraphMemory:
    """What all graphs share, because only one runs at a time and its output is read before the next: without that each
    would hold tens of megabytes."""

    def __init__(self, max_tokens: int, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.hidden = torch.empty(max_tokens, hidden_size, dtype=dtype, device=device)
        """[max_tokens, hidden_size]: every graph's output, in its first rows."""

    def capture(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        step()  # compiles kernels, which a capture must not do
        graph = torch.cuda.CUDAGraph()
        # Adapter threads pin memory meanwhile, which a capture of the default mode would not survive; nor would any
        # survive the end of another engine's graphs, which are garbage when their engine is.
        with collector_paused(), torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            step()
        return graph


class Decoded(NamedTuple):
    """A decode step of n requests, on the device; valid until the next replay of any graph."""

    hidden: Tensor
    """[n, hidden_size]"""
    rows: Tensor
    """[n] int64"""
    sample_positions: Tensor
    """[n] int64: of the tokens to come"""


@dataclass(frozen=True, slots=True)
class DecodeGraph:
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    """[3, padded size] int64: rows, the positions of their newest tokens, and those of the tokens to come."""


class DecodeGraphs:
    """One graph for each padded batch size and set of modules that adapters may change: an engine whose adapters are
    not in use runs exactly what one without adapters does, and adapters pay for the layers that they change.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        states: RequestStates,
        kv_caches: tuple[LayerKv, ...],
        lora_tables: LoraTables | None,
        block_size: int,
        memory: GraphMemory,
    ) -> None:
        self._model = model
        self._states = states
        self._kv_caches = kv_caches
        self._lora_tables = lora_tables
        self._block_size = block_size
        # A graph remembers addresses: what it reads and did not make itself must live as long as it does.
        self._query_start_loc = torch.arange(states.spare_row + 8, dtype=torch.int32, device=states.device)
        self._graphs: dict[tuple[int, frozenset[TargetModule]], DecodeGraph] = {}
        self._memory = memory

    def replay(self, rows: IntArray, positions: IntArray, modules: frozenset[TargetModule]) -> Decoded:
        """Of requests `rows` [n], whose newest tokens are at `positions` [n]; `modules`: what their adapters change."""
        num_requests = len(rows)
        key = padded_size(num_requests), covering_modules(modules)
        if key not in self._graphs:
            self._graphs[key] = self._capture(*key)
        captured = self._graphs[key]
        send(self._padded(rows, positions, key[0]), captured.inputs)
        captured.graph.replay()
        own_rows, _, sample_positions = captured.inputs[:, :num_requests]
        return Decoded(self._memory.hidden[:num_requests], own_rows, sample_positions)

    def capture_missing(self, modules: frozenset[TargetModule], max_num_seqs: int) -> Iterator[None]:
        """Those of every batch size, each when the next is asked for."""
        for size in dict.fromkeys(padded_size(num_requests) for num_requests in range(1, max_num_seqs + 1)):
            if (size, modules) not in self._graphs:
                self._graphs[size, modules] = self._capture(size, modules)
                yield

    def _padded(self, rows: IntArray, positions: IntArray, size: int) -> IntArray:
        inputs = np.zeros((3, size), dtype=np.int64)
        inputs[0] = self._states.spare_row
        inputs[:, : len(rows)] = rows, positions, positions + 1
        return inputs

    def _capture(self, size: int, modules: frozenset[TargetModule]) -> DecodeGraph:
        nobody = np.empty(0, dtype=np.int64)
        inputs = torch.from_numpy(self._padded(nobody, nobody, size)).to(self._states.device)
        return DecodeGraph(self._memory.capture(self._step(inputs, modules)), inputs)

    def _step(self, inputs: Tensor, modules: frozenset[TargetModule]) -> Callable[[], None]:
        rows, positions, _ = inputs
        num_requests = len(rows)
        query_start_loc = self._query_start_loc[: num_requests + 1]

        def step() -> None:
            gathered = self._gather(rows, positions)
            attention = AttentionInputs(
                query_start_loc=query_start_loc,
                seq_lens=gathered.seq_lens,
                block_tables=gathered.block_tables,
                slot_mapping=gathered.slot_mapping,
                max_query_len=1,
                max_seq_len=self._states.max_model_len,
            )
            lora = self._lora_inputs(gathered.adapter_slots, modules) if modules else None
            with step_context(StepContext(self._kv_caches, attention, lora)):
                self._memory.hidden[:num_requests] = self._model(gathered.input_ids, positions)

        return step

    def _gather(self, rows: Tensor, positions: Tensor) -> "DecodeInputs":
        from descant_kernels import RequestRows, decode_inputs  # needs Triton, which CPU engines do without

        states = self._states
        requests = RequestRows(states.token_ids, states.block_tables, states.adapter_slots)
        return decode_inputs(rows, positions, requests, self._block_size, states.spare_row)

    def _lora_inputs(self, adapter_slots: Tensor, modules: frozenset[TargetModule]) -> LoraInputs:
        assert self._lora_tables is not None
        return LoraInputs(self._lora_tables, adapter_slots, modules=modules)
