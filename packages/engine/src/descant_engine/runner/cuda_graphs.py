"""Decode steps as CUDA graphs: one token a request, everything from the rows' tokens to hidden states in one launch.

A graph is captured when its batch size is first needed, or before, while nobody waits. The host copies two short arrays
in (`rows`, `positions`), and the graph gathers the rest from the request rows on the device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from descant_engine.adapter import TargetModule
from descant_engine.forward_context import AttentionInputs, KvCache, LoraInputs, LoraTables, StepContext, step_context
from descant_engine.models.llama import LlamaForCausalLM
from descant_engine.runner.request_states import RequestStates
from descant_engine.steady_heap import collector_paused

NO_SLOT = -1
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


@dataclass(frozen=True, slots=True)
class DecodeGraph:
    graph: torch.cuda.CUDAGraph
    rows: Tensor
    """[padded size] int64, input; the spare row pads."""
    positions: Tensor
    """[padded size] int64, input: of each request's newest token."""


class DecodeGraphs:
    """One graph for each padded batch size and set of modules that adapters may change: an engine whose adapters are
    not in use runs exactly what one without adapters does, and adapters pay for the layers that they change.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        states: RequestStates,
        kv_caches: tuple[KvCache, ...],
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

    def replay(self, rows: Tensor, positions: Tensor, modules: frozenset[TargetModule]) -> Tensor:
        """rows [n], positions [n] int64 on the device -> [n, hidden_size], valid until the next replay of any graph;
        `modules`: what their adapters change."""
        key = padded_size(len(rows)), covering_modules(modules)
        if key not in self._graphs:
            self._graphs[key] = self._capture(*key)
        captured = self._graphs[key]
        captured.rows[: len(rows)] = rows
        captured.rows[len(rows) :] = self._states.spare_row
        captured.positions[: len(rows)] = positions
        captured.positions[len(rows) :] = 0
        captured.graph.replay()
        return self._memory.hidden[: len(rows)]

    def capture_missing(self, modules: frozenset[TargetModule], max_num_seqs: int) -> Iterator[None]:
        """Those of every batch size, each when the next is asked for."""
        for size in dict.fromkeys(padded_size(num_requests) for num_requests in range(1, max_num_seqs + 1)):
            if (size, modules) not in self._graphs:
                self._graphs[size, modules] = self._capture(size, modules)
                yield

    def _capture(self, size: int, modules: frozenset[TargetModule]) -> DecodeGraph:
        rows = torch.full((size,), self._states.spare_row, device=self._states.device)
        positions = torch.zeros_like(rows)
        graph = self._memory.capture(self._step(rows, positions, modules))
        return DecodeGraph(graph, rows, positions)

    def _step(self, rows: Tensor, positions: Tensor, modules: frozenset[TargetModule]) -> Callable[[], None]:
        num_requests = len(rows)
        query_start_loc = self._query_start_loc[: num_requests + 1]
        max_seq_len = self._states.max_model_len

        def step() -> None:
            block_tables = self._states.block_tables[rows]
            blocks = block_tables.gather(1, (positions // self._block_size).unsqueeze(1)).squeeze(1)
            slots = blocks.to(torch.int64) * self._block_size + positions % self._block_size
            attention = AttentionInputs(
                query_start_loc=query_start_loc,
                seq_lens=(positions + 1).to(torch.int32),
                block_tables=block_tables,
                slot_mapping=torch.where(rows == self._states.spare_row, NO_SLOT, slots),
                max_query_len=1,
                max_seq_len=max_seq_len,
            )
            lora = self._lora_inputs(rows, modules) if modules else None
            with step_context(StepContext(self._kv_caches, attention, lora)):
                hidden = self._model(self._states.token_ids[rows, positions], positions)
            self._memory.hidden[:num_requests] = hidden

        return step

    def _lora_inputs(self, rows: Tensor, modules: frozenset[TargetModule]) -> LoraInputs:
        assert self._lora_tables is not None
        return LoraInputs(self._lora_tables, self._states.adapter_slots[rows], modules=modules)
