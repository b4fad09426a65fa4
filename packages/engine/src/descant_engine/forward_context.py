"""The tensors of this step that only layers read: attention's and the adapters'. Models never look in here.

The runner enters `step_context` around a forward pass; attention and LoRA layers call `current_step`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from descant_engine.adapters.manifest import TargetModule

NOT_CACHED = -1
"""In a slot mapping: the token's K and V go nowhere. The kernels have their own, which needs Triton."""
BASE_SLOT = -1
"""In place of an adapter's slot: the base model."""


class LayerKv(NamedTuple):
    """One layer's part of the block pool, as strided views: [num_blocks, block_size, num_kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Requests lie one after another along the token axis; causal within each."""

    query_start_loc: Tensor
    """[num_requests + 1] int32: request i owns tokens [loc[i], loc[i + 1])."""
    seq_lens: Tensor
    """[num_requests] int32: tokens in the KV cache once this step's are written."""
    block_tables: Tensor
    """[num_requests, max_blocks] int32: logical block -> block id; entries past the sequence are undefined."""
    slot_mapping: Tensor
    """[num_tokens] int64: block_id * block_size + offset, where each token's K and V go, or NOT_CACHED."""
    max_query_len: int
    max_seq_len: int


@dataclass(frozen=True, slots=True)
class LoraTables:
    """Where every resident adapter's rank tiles lie. Persistent; written by `runner.adapter_memory` only.

    An adapted linear layer's lora_a [rank, in] is cut into tiles of `rank_tile` rows, its lora_b, transposed to
    [rank, out], likewise; the last tile of either has only the rows that are left. Tiles are row-major and contiguous.
    """

    pool: Tensor
    """[num_blocks * block_elements]: the block pool, flat. KV and adapters share it."""
    a_offsets: Tensor
    """[num_slots, num_layers, num_modules, max_tiles] int64: element offset into `pool`."""
    b_offsets: Tensor
    lora_ranks: Tensor
    """[num_slots, num_layers, num_modules] int32; 0 where the adapter leaves the layer alone."""
    scalings: Tensor
    """[num_slots, num_layers, num_modules] float32."""
    rank_tile: int


@dataclass(frozen=True, slots=True)
class LoraInputs:
    tables: LoraTables
    token_adapter_slot: Tensor
    """[num_tokens] int32, or BASE_SLOT."""
    modules: frozenset[TargetModule]
    """What any adapter of the step may change; other layers have nothing to add."""


@dataclass(frozen=True, slots=True)
class StepContext:
    kv_caches: tuple[LayerKv, ...]
    """By layer."""
    attention: AttentionInputs
    lora: LoraInputs | None
    """None if no request of this step uses an adapter."""


_current: ContextVar[StepContext] = ContextVar("descant_step_context")


@contextmanager
def step_context(context: StepContext) -> Iterator[None]:
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def current_step() -> StepContext:
    """Raises LookupError outside `step_context`."""
    return _current.get()
