"""A model over a small block pool, driven by hand: what the runner does, in the fewest lines."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from descant_engine.adapters.manifest import TargetModule
from descant_engine.config import ModelShape
from descant_engine.forward_context import (
    AttentionInputs,
    LayerKv,
    LoraInputs,
    LoraTables,
    StepContext,
    step_context,
)
from descant_engine.models.llama import LlamaForCausalLM

RANK_TILE = 4
MAX_TILES = 8
NUM_SLOTS = 6

AdapterTensors = dict[tuple[int, TargetModule], tuple[Tensor, Tensor, float]]
"""(layer, module) -> lora_a [rank, in], lora_b [out, rank], scaling"""


@dataclass
class Conversation:
    """One request: its tokens, and how many of them are in the KV cache."""

    token_ids: list[int]
    slot: int = -1
    num_computed: int = 0
    block_ids: list[int] = field(default_factory=list)


class BlockPool:
    """[num_blocks, num_layers, 2, block_size, kvh, d], given out in a scattered order. Full of NaN, as a pool may be
    that others have used: nothing of it may leak into what is computed.
    """

    def __init__(
        self, shape: ModelShape, num_blocks: int = 48, block_size: int = 4, dtype: torch.dtype = torch.float32
    ) -> None:
        self.block_size = block_size
        size = (num_blocks, shape.num_layers, 2, block_size, shape.num_kv_heads, shape.head_dim)
        self.tensor = torch.full(size, torch.nan, dtype=dtype)
        self.caches = tuple(
            LayerKv(self.tensor[:, layer, 0], self.tensor[:, layer, 1]) for layer in range(shape.num_layers)
        )
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
        self._free: list[int] = order

    def take(self) -> int:
        return self._free.pop()

    def give_back(self, conversation: Conversation) -> None:
        self._free += conversation.block_ids
        conversation.block_ids = []

    def attention_inputs(self, parts: list[tuple[Conversation, int]]) -> AttentionInputs:
        """For the next `n` tokens of each (conversation, n); gives blocks as needed."""
        seq_lens = [conversation.num_computed + num_tokens for conversation, num_tokens in parts]
        slots: list[int] = []
        for (conversation, _), seq_len in zip(parts, seq_lens, strict=True):
            while len(conversation.block_ids) * self.block_size < seq_len:
                conversation.block_ids.append(self.take())
            slots += [
                conversation.block_ids[position // self.block_size] * self.block_size + position % self.block_size
                for position in range(conversation.num_computed, seq_len)
            ]
        # Entries past a request's end point at a block that is nobody's.
        tables = torch.full((len(parts), max(len(c.block_ids) for c, _ in parts) + 1), self._free[0], dtype=torch.int32)
        for row, (conversation, _) in enumerate(parts):
            tables[row, : len(conversation.block_ids)] = torch.tensor(conversation.block_ids)
        return AttentionInputs(
            query_start_loc=torch.tensor([0, *(n for _, n in parts)]).cumsum(0).int(),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
            block_tables=tables,
            slot_mapping=torch.tensor(slots),
            max_query_len=max(n for _, n in parts),
            max_seq_len=max(seq_lens),
        )


class AdapterTables:
    """LoraTables over a flat pool of their own, cut into rank tiles as the runner cuts them."""

    def __init__(self, shape: ModelShape, dtype: torch.dtype = torch.float32, elements: int = 1 << 18) -> None:
        dimensions = (NUM_SLOTS, shape.num_layers, len(TargetModule))
        self.tables = LoraTables(
            pool=torch.full((elements,), torch.nan, dtype=dtype),
            a_offsets=torch.zeros(*dimensions, MAX_TILES, dtype=torch.int64),
            b_offsets=torch.zeros(*dimensions, MAX_TILES, dtype=torch.int64),
            lora_ranks=torch.zeros(dimensions, dtype=torch.int32),
            scalings=torch.zeros(dimensions),
            rank_tile=RANK_TILE,
        )
        self._end = 0

    def publish(self, slot: int, adapter: AdapterTensors) -> None:
        self.tables.lora_ranks[slot] = 0
        for (layer, module), (lora_a, lora_b, scaling) in adapter.items():
            self.tables.lora_ranks[slot, layer, module] = len(lora_a)
            self.tables.scalings[slot, layer, module] = scaling
            for table, rows in ((self.tables.a_offsets, lora_a), (self.tables.b_offsets, lora_b.T)):
                for tile, part in enumerate(rows.split(RANK_TILE)):
                    table[slot, layer, module, tile] = self._place(part)

    def _place(self, tile: Tensor) -> int:
        start = self._end + 8  # a gap: neighbours are not contiguous
        self._end = start + tile.numel()
        self.tables.pool[start : self._end] = tile.flatten().to(self.tables.pool.dtype)
        return start


class PagedModel:
    def __init__(self, model: LlamaForCausalLM, pool: BlockPool, adapters: AdapterTables | None = None) -> None:
        self._model, self.pool, self._adapters = model, pool, adapters

    @torch.inference_mode()
    def step(self, *parts: tuple[Conversation, int]) -> list[Tensor]:
        """Computes the next n tokens of each (conversation, n) in one batch -> logits [n, vocab] of each."""
        chunks = [c.token_ids[c.num_computed : c.num_computed + n] for c, n in parts]
        positions = torch.cat([torch.arange(c.num_computed, c.num_computed + n) for c, n in parts])
        context = StepContext(self.pool.caches, self.pool.attention_inputs(list(parts)), self._lora(list(parts)))
        with step_context(context):
            hidden = self._model(torch.tensor([token for chunk in chunks for token in chunk]), positions)
        for conversation, num_tokens in parts:
            conversation.num_computed += num_tokens
        return list(self._model.compute_logits(hidden).split([n for _, n in parts]))

    def logits(self, token_ids: list[int], chunks: list[int], slot: int = -1) -> Tensor:
        """[num_tokens, vocab] of one request alone, computed in chunks of the given lengths."""
        conversation = Conversation(token_ids, slot)
        result = torch.cat([self.step((conversation, chunk))[0] for chunk in chunks])
        self.pool.give_back(conversation)
        return result

    def _lora(self, parts: list[tuple[Conversation, int]]) -> LoraInputs | None:
        slots = [conversation.slot for conversation, n in parts for _ in range(n)]
        if self._adapters is None or max(slots) < 0:
            return None
        return LoraInputs(self._adapters.tables, torch.tensor(slots, dtype=torch.int32), frozenset(TargetModule))
