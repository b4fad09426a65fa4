"""Small mixed steps as CUDA graphs: decodes beside short prompts or chunks, where launching kernel by kernel takes the
host longer than they take the device. Larger steps hide their launches behind their products.

The step's inputs, of whatever lengths, are copied into buffers of a few sizes; what pads them belongs to no request.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from descant_engine.adapters.manifest import TargetModule
from descant_engine.forward_context import (
    BASE_SLOT,
    NOT_CACHED,
    AttentionInputs,
    LayerKv,
    LoraInputs,
    LoraTables,
    StepContext,
    step_context,
)
from descant_engine.models.llama import LlamaForCausalLM
from descant_engine.runner.cuda_graphs import GraphMemory, covering_modules
from descant_engine.runner.input_batch import InputBatch
from descant_engine.runner.request_states import RequestStates

BASE_TOKEN_SIZES = (64, 128, 192, 256)
ADAPTER_TOKEN_SIZES = (*BASE_TOKEN_SIZES, 320, 384, 448, 512, 640, 768)
"""Up to where the host takes longer to launch a step than the device to run it; adapters have twice as many launches.
Steps that are bound by their products pay for padding, so they get none."""
MAX_TOKENS = ADAPTER_TOKEN_SIZES[-1]
MIN_REQUESTS = 8


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
        return cls(num_tokens, padded_requests(len(batch.attention.seq_lens)), covering_modules(modules))

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


class MixedBuffers:
    """Inputs at addresses that graphs remember, of the largest size; a smaller graph reads the first of each."""

    def __init__(self, num_tokens: int, num_requests: int, max_blocks: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.input_ids, self.positions, self.slot_mapping = zeros(num_tokens), zeros(num_tokens), zeros(num_tokens)
        self.token_adapter_slot = zeros(num_tokens, dtype=torch.int32)
        self.query_start_loc = zeros(num_requests + 1, dtype=torch.int32)
        self.seq_lens = zeros(num_requests, dtype=torch.int32)
        self.block_tables = zeros(num_requests, max_blocks, dtype=torch.int32)
        self.belong_to_nobody(0, 0)

    def fill(self, batch: InputBatch) -> None:
        attention = batch.attention
        num_tokens, num_requests = len(batch.input_ids), len(attention.seq_lens)
        self.input_ids[:num_tokens] = batch.input_ids
        self.positions[:num_tokens] = batch.positions
        self.slot_mapping[:num_tokens] = attention.slot_mapping
        self.token_adapter_slot[:num_tokens] = batch.token_adapter_slot
        self.query_start_loc[: num_requests + 1] = attention.query_start_loc
        self.seq_lens[:num_requests] = attention.seq_lens
        self.block_tables[:num_requests, : attention.block_tables.shape[1]] = attention.block_tables
        self.belong_to_nobody(num_tokens, num_requests)

    def belong_to_nobody(self, first_token: int, first_request: int) -> None:
        """Requests from the one on have no tokens; tokens from the one on no place in the cache and no adapter. What
        else they are is left from earlier steps, and read by nobody."""
        self.slot_mapping[first_token:] = NOT_CACHED
        self.token_adapter_slot[first_token:] = BASE_SLOT
        self.query_start_loc[first_request + 1 :] = first_token


class MixedGraphs:
    """One graph for each size, captured while nobody waits, or when it comes up again: a capture costs what many
    launches cost."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        states: RequestStates,
        kv_caches: tuple[LayerKv, ...],
        lora_tables: LoraTables | None,
        memory: GraphMemory,
    ) -> None:
        self._model = model
        self._kv_caches = kv_caches
        self._lora_tables = lora_tables
        self._max_model_len = states.max_model_len
        max_requests = min(padded_requests(states.spare_row), MAX_TOKENS)
        self._buffers = MixedBuffers(MAX_TOKENS, max_requests, states.block_tables.shape[1], states.device)
        self._seen: set[MixedSize] = set()
        self._graphs: dict[MixedSize, torch.cuda.CUDAGraph] = {}
        self._memory = memory

    def replay(self, batch: InputBatch, modules: frozenset[TargetModule]) -> Tensor | None:
        """[num_tokens, hidden_size], valid until the next replay of any graph. None if the step is to be launched
        kernel by kernel. `modules`: what the batch's adapters change."""
        size = MixedSize.of(batch, modules)
        if size is None:
            return None
        if size not in self._graphs:
            if size not in self._seen:
                self._seen.add(size)
                return None
            self._graphs[size] = self._capture(size)
        self._buffers.fill(batch)
        self._graphs[size].replay()
        return self._memory.hidden[: len(batch.input_ids)]

    def capture_missing(self, modules: frozenset[TargetModule], max_num_seqs: int) -> Iterator[None]:
        """Those of every size, each when the next is asked for."""
        for size in MixedSize.all_of(modules, max_num_seqs):
            if size not in self._graphs:
                self._graphs[size] = self._capture(size)
                yield

    def _capture(self, size: MixedSize) -> torch.cuda.CUDAGraph:
        self._buffers.belong_to_nobody(0, 0)
        return self._memory.capture(self._step(size))

    def _step(self, size: MixedSize) -> Callable[[], None]:
        buffers, num_tokens = self._buffers, size.num_tokens
        attention = AttentionInputs(
            query_start_loc=buffers.query_start_loc[: size.num_requests + 1],
            seq_lens=buffers.seq_lens[: size.num_requests],
            block_tables=buffers.block_tables[: size.num_requests],
            slot_mapping=buffers.slot_mapping[:num_tokens],
            max_query_len=num_tokens,
            max_seq_len=self._max_model_len,
        )

        def step() -> None:
            lora = self._lora_inputs(size) if size.modules else None
            with step_context(StepContext(self._kv_caches, attention, lora)):
                hidden = self._model(buffers.input_ids[:num_tokens], buffers.positions[:num_tokens])
            self._memory.hidden[:num_tokens] = hidden

        return step

    def _lora_inputs(self, size: MixedSize) -> LoraInputs:
        assert self._lora_tables is not None
        return LoraInputs(self._lora_tables, self._buffers.token_adapter_slot[: size.num_tokens], size.modules)
