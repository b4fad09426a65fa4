"""Small mixed steps as CUDA graphs: decodes beside short prompts or chunks, where launching kernel by kernel takes the
host longer than they take the device. Larger steps hide their launches behind their products.

The step's inputs, of whatever lengths, are copied into buffers of a few sizes; what pads them belongs to no request.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from descant_engine.adapter import TargetModule
from descant_engine.forward_context import AttentionInputs, KvCache, LoraInputs, LoraTables, StepContext, step_context
from descant_engine.models.llama import LlamaForCausalLM
from descant_engine.runner.cuda_graphs import NO_SLOT, covering_modules
from descant_engine.runner.input_batch import InputBatch
from descant_engine.runner.request_states import RequestStates

BASE_TOKEN_SIZES = (64, 128, 192, 256)
ADAPTER_TOKEN_SIZES = (*BASE_TOKEN_SIZES, 320, 384, 448, 512, 640, 768)
"""Up to where the host takes longer to launch a step than the device to run it; adapters have twice as many launches.
Steps that are bound by their products pay for padding, so they get none."""
MIN_REQUESTS = 8
BASE_SLOT = -1


@dataclass(frozen=True, slots=True)
class MixedSize:
    """What a graph is made for: any batch within it."""

    num_tokens: int
    num_requests: int
    """A power of two; decodes divide long contexts by it."""
    modules: frozenset[TargetModule]

    @classmethod
    def of(cls, batch: InputBatch, modules: frozenset[TargetModule]) -> "MixedSize | None":
        """The smallest one that has room; None if the batch is too large for any."""
        num_tokens = next((size for size in token_sizes(modules) if size >= len(batch.input_ids)), None)
        if num_tokens is None:
            return None
        num_requests = max(len(batch.attention.seq_lens), len(batch.logits_indices))
        return cls(num_tokens, padded_requests(num_requests), covering_modules(modules))

    @classmethod
    def all_of(cls, modules: frozenset[TargetModule], max_num_seqs: int) -> "Iterator[MixedSize]":
        for num_tokens in token_sizes(modules):
            num_requests = MIN_REQUESTS
            while num_requests <= min(padded_requests(max_num_seqs), num_tokens):
                yield cls(num_tokens, num_requests, modules)
                num_requests *= 2


def token_sizes(modules: frozenset[TargetModule]) -> tuple[int, ...]:
    return ADAPTER_TOKEN_SIZES if modules else BASE_TOKEN_SIZES


def padded_requests(num_requests: int) -> int:
    return max(MIN_REQUESTS, 1 << (num_requests - 1).bit_length())


@dataclass(frozen=True, slots=True)
class ForwardOutput:
    hidden: Tensor
    """[num_tokens, hidden_size]"""
    logits: Tensor | None
    """[num_samples, vocab]; None if nothing is sampled."""


class MixedBuffers:
    """The inputs at addresses that a graph remembers."""

    def __init__(self, size: MixedSize, max_blocks: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.input_ids, self.positions = zeros(size.num_tokens), zeros(size.num_tokens)
        self.slot_mapping = zeros(size.num_tokens).fill_(NO_SLOT)
        self.token_adapter_slot = zeros(size.num_tokens, dtype=torch.int32).fill_(BASE_SLOT)
        self.query_start_loc = zeros(size.num_requests + 1, dtype=torch.int32)
        self.seq_lens = zeros(size.num_requests, dtype=torch.int32)
        self.block_tables = zeros(size.num_requests, max_blocks, dtype=torch.int32)
        self.logits_indices = zeros(size.num_requests)

    def fill(self, batch: InputBatch) -> None:
        """Requests beyond the batch's have no tokens, tokens beyond its no place in the cache and no adapter. What else
        they are is left from earlier steps, and read by nobody."""
        attention = batch.attention
        num_tokens, num_requests = len(batch.input_ids), len(attention.seq_lens)
        self.input_ids[:num_tokens] = batch.input_ids
        self.positions[:num_tokens] = batch.positions
        self.slot_mapping[:num_tokens] = attention.slot_mapping
        self.slot_mapping[num_tokens:] = NO_SLOT
        self.token_adapter_slot[:num_tokens] = batch.token_adapter_slot
        self.token_adapter_slot[num_tokens:] = BASE_SLOT
        self.query_start_loc[: num_requests + 1] = attention.query_start_loc
        self.query_start_loc[num_requests + 1 :] = num_tokens
        self.seq_lens[:num_requests] = attention.seq_lens
        self.block_tables[:num_requests, : attention.block_tables.shape[1]] = attention.block_tables
        self.logits_indices[: len(batch.logits_indices)] = batch.logits_indices


@dataclass(frozen=True, slots=True)
class MixedGraph:
    graph: torch.cuda.CUDAGraph
    buffers: MixedBuffers
    hidden: Tensor
    """[padded tokens, hidden_size]; valid until the next replay of any graph, as are"""
    logits: Tensor
    """[padded requests, vocab]"""

    def replay(self, batch: InputBatch) -> ForwardOutput:
        self.buffers.fill(batch)
        self.graph.replay()
        num_samples = len(batch.logits_indices)
        return ForwardOutput(self.hidden[: len(batch.input_ids)], self.logits[:num_samples] if num_samples else None)


class MixedGraphs:
    """One graph for each size, captured while nobody waits, or when it comes up again: a capture costs what many
    launches cost."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        states: RequestStates,
        kv_caches: tuple[KvCache, ...],
        lora_tables: LoraTables | None,
        memory_pool: "torch.cuda._POOL_HANDLE",
    ) -> None:
        self._model = model
        self._kv_caches = kv_caches
        self._lora_tables = lora_tables
        self._max_model_len = states.max_model_len
        self._max_blocks = states.block_tables.shape[1]
        self._device = states.device
        self._seen: set[MixedSize] = set()
        self._graphs: dict[MixedSize, MixedGraph] = {}
        self._memory_pool = memory_pool

    def forward(self, batch: InputBatch, modules: frozenset[TargetModule]) -> ForwardOutput | None:
        """`modules`: what the batch's adapters change. None if the step is to be launched kernel by kernel."""
        size = MixedSize.of(batch, modules)
        if size is None:
            return None
        if size not in self._graphs:
            if size not in self._seen:
                self._seen.add(size)
                return None
            self._graphs[size] = self._capture(size)
        return self._graphs[size].replay(batch)

    def capture_missing(self, modules: frozenset[TargetModule], max_num_seqs: int) -> Iterator[None]:
        """Those of every size, each when the next is asked for."""
        for size in MixedSize.all_of(modules, max_num_seqs):
            if size not in self._graphs:
                self._graphs[size] = self._capture(size)
                yield

    def _capture(self, size: MixedSize) -> MixedGraph:
        buffers = MixedBuffers(size, self._max_blocks, self._device)
        step = self._step(size, buffers)
        step()  # compiles kernels, which a capture must not do
        graph = torch.cuda.CUDAGraph()
        # Adapter threads pin memory meanwhile, which a capture of the default mode would not survive.
        with torch.cuda.graph(graph, pool=self._memory_pool, capture_error_mode="thread_local"):
            hidden, logits = step()
        return MixedGraph(graph, buffers, hidden, logits)

    def _step(self, size: MixedSize, buffers: MixedBuffers) -> Callable[[], tuple[Tensor, Tensor]]:
        attention = AttentionInputs(
            query_start_loc=buffers.query_start_loc,
            seq_lens=buffers.seq_lens,
            block_tables=buffers.block_tables,
            slot_mapping=buffers.slot_mapping,
            max_query_len=size.num_tokens,
            max_seq_len=self._max_model_len,
        )

        def step() -> tuple[Tensor, Tensor]:
            lora = None
            if size.modules:
                assert self._lora_tables is not None
                lora = LoraInputs(self._lora_tables, buffers.token_adapter_slot, size.modules)
            with step_context(StepContext(self._kv_caches, attention, lora)):
                hidden = self._model(buffers.input_ids, buffers.positions)
            return hidden, self._model.compute_logits(hidden[buffers.logits_indices])

        return step
