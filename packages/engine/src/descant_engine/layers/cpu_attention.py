"""Paged attention in torch. The index arithmetic is done once per step (AttentionPlan); a layer then does a write, a
gather and one or more scaled dot products.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from descant_engine.forward_context import AttentionInputs, LayerKv

FEW_TOKENS = 16
"""Query tokens of a request; up to here each attends by itself, as in decode. Drafts are to get the bits that they
would get one by one, and products of several rows do not sum in the same order as those of one."""
SHORT = 512
"""Tokens; requests up to here pad each other's decode step, whatever their lengths."""


@dataclass(frozen=True, slots=True)
class LayerRows:
    """One layer's K and V seen as rows of the pool, so that an index gathers or writes both without copying first.

    A block holds, for every layer, first its tokens' K, then their V; both views start at the layer's first K.
    """

    blocks: Tensor
    """[rows, block_size * kvh * d]: K of block b is row b * rows_per_block, its V the next."""
    tokens: Tensor
    """[rows, kvh * d]: K of token t of block b is row b * rows_per_block * block_size + t, its V block_size further."""

    @classmethod
    def of(cls, cache: LayerKv) -> Self:
        keys, values = cache
        num_blocks, block_size, num_kv_heads, head_dim = keys.shape
        width = num_kv_heads * head_dim
        assert values.storage_offset() - keys.storage_offset() == block_size * width, "V must follow K in a block"
        length = (num_blocks - 1) * keys.stride(0) + 2 * block_size * width

        def rows_of(row: int) -> Tensor:
            return keys.as_strided((length // row, row), (row, 1))

        return cls(rows_of(block_size * width), rows_of(width))


class PoolGeometry(NamedTuple):
    """How block ids become rows of LayerRows; the same for every layer."""

    block_size: int
    rows_per_block: int
    """From a block's row to the next block's: K and V of every layer lie between."""

    @classmethod
    def of(cls, cache: LayerKv) -> Self:
        _, block_size, num_kv_heads, head_dim = cache.keys.shape
        return cls(block_size, cache.keys.stride(0) // (block_size * num_kv_heads * head_dim))

    def num_blocks(self, seq_len: int) -> int:
        return -(-seq_len // self.block_size)

    def block_rows(self, block_ids: Tensor) -> Tensor:
        """For LayerRows.blocks: K of every block, then V of every block."""
        key_rows = block_ids.flatten().to(torch.int64) * self.rows_per_block
        return torch.cat([key_rows, key_rows + 1])

    def token_rows(self, slot_mapping: Tensor) -> Tensor:
        """[2 * num_tokens] for LayerRows.tokens: where each token's K goes, then where its V goes."""
        blocks, offsets = slot_mapping // self.block_size, slot_mapping % self.block_size
        key_rows = blocks * (self.rows_per_block * self.block_size) + offsets
        return torch.cat([key_rows, key_rows + self.block_size])


@dataclass(frozen=True, slots=True)
class DecodePart:
    """Requests of similar length with one query token each, padded to the longest; or one request with a few."""

    tokens: Tensor | None
    """[num_tokens] rows of q; None if they are all there is."""
    block_rows: Tensor
    """[2 * num_requests * num_blocks] for LayerRows.blocks"""
    num_requests: int
    mask: Tensor
    """[num_tokens, 1, 1, padded length]: 0 or -inf, added to the scores."""


@dataclass(frozen=True, slots=True)
class PrefillPart:
    """One request with several query tokens: tokens [first, last) of the step."""

    first: int
    last: int
    block_rows: Tensor | None
    """[2 * num_blocks]; None if the step has all of the request's tokens, so that nothing need be gathered."""
    seq_len: int
    mask: Tensor | None
    """[query_len, seq_len] bool; None if plainly causal."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    write_rows: Tensor
    """[2 * num_tokens] for LayerRows.tokens: K, then V."""
    fresh_blocks: Tensor
    """Blocks that get their first token in this step."""
    decodes: tuple[DecodePart, ...]
    prefills: tuple[PrefillPart, ...]

    @classmethod
    def of(cls, inputs: AttentionInputs, cache: LayerKv, dtype: torch.dtype) -> Self:
        geometry = PoolGeometry.of(cache)
        starts, seq_lens = inputs.query_start_loc.tolist(), inputs.seq_lens.tolist()
        decodes: dict[int, list[int]] = {}
        few: list[DecodePart] = []
        prefills: list[PrefillPart] = []
        for request, seq_len in enumerate(seq_lens):
            first, last = starts[request : request + 2]
            if last - first == 1:
                decodes.setdefault(_length_class(seq_len), []).append(request)
            elif 1 < last - first <= min(FEW_TOKENS, seq_len - 1):
                few.append(_few_part(first, last, starts[-1], seq_len, inputs.block_tables[request], geometry, dtype))
            elif last > first:
                prefills.append(_prefill_part(first, last, seq_len, inputs.block_tables[request], geometry))
        first_slots = inputs.slot_mapping[inputs.slot_mapping % geometry.block_size == 0]
        return cls(
            geometry.token_rows(inputs.slot_mapping),
            first_slots // geometry.block_size,
            (*few, *(_decode_part(inputs, requests, geometry, dtype) for requests in decodes.values())),
            tuple(prefills),
        )

    def clear_fresh_blocks(self, caches: tuple[LayerKv, ...]) -> None:
        """Zeros the blocks that start now. Gathers read whole blocks, and a masked token counts for 0 times its value:
        what a former owner left behind might be NaN.
        """
        if len(self.fresh_blocks):
            first = caches[0].keys  # a block begins with the first layer's K
            whole_blocks = first.as_strided((len(first), first.stride(0)), (first.stride(0), 1))
            whole_blocks.index_fill_(0, self.fresh_blocks, 0)


def attend(plan: AttentionPlan, rows: LayerRows, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Writes k and v [T, kvh, d], then q [T, qh, d] -> [T, qh * d]."""
    num_tokens = len(q)
    rows.tokens.index_copy_(0, plan.write_rows[:num_tokens], k.flatten(1))
    rows.tokens.index_copy_(0, plan.write_rows[num_tokens:], v.flatten(1))
    if plan.decodes and plan.decodes[0].tokens is None:
        return _attend_decode(plan.decodes[0], rows, q, k.shape[1], scale)
    output = q.new_empty(num_tokens, q.shape[1] * q.shape[2])
    for decode in plan.decodes:
        output[decode.tokens] = _attend_decode(decode, rows, q[decode.tokens], k.shape[1], scale)
    for part in plan.prefills:
        here = slice(part.first, part.last)
        output[here] = _attend_prefill(part, rows, q[here], k[here], v[here], scale)
    return output


def _length_class(seq_len: int) -> int:
    """Requests of one class share a padded product: up to SHORT tokens, or within a factor of four of each other."""
    return (((seq_len - 1) // SHORT).bit_length() + 1) // 2


def _decode_part(
    inputs: AttentionInputs, requests: list[int], geometry: PoolGeometry, dtype: torch.dtype
) -> DecodePart:
    tokens, seq_lens, tables = None, inputs.seq_lens, inputs.block_tables
    if len(requests) < len(seq_lens):
        seq_lens, tables = seq_lens[requests], tables[requests]
        tokens = inputs.query_start_loc[requests].to(torch.int64)
    num_blocks = geometry.num_blocks(int(seq_lens.max()))
    beyond = torch.arange(num_blocks * geometry.block_size) >= seq_lens[:, None]
    mask = torch.zeros(beyond.shape, dtype=dtype).masked_fill_(beyond, -torch.inf)
    # Entries past a request's end are undefined: let them be its first block, which is its own and finite.
    used = ~beyond[:, :: geometry.block_size]
    tables = torch.where(used, tables[:, :num_blocks], tables[:, :1])
    return DecodePart(tokens, geometry.block_rows(tables), len(seq_lens), mask[:, None, None])


def _few_part(
    first: int, last: int, num_tokens: int, seq_len: int, table: Tensor, geometry: PoolGeometry, dtype: torch.dtype
) -> DecodePart:
    table = table[: geometry.num_blocks(seq_len)]
    lengths = torch.arange(seq_len - (last - first), seq_len) + 1
    beyond = torch.arange(len(table) * geometry.block_size) >= lengths[:, None]
    mask = torch.zeros(beyond.shape, dtype=dtype).masked_fill_(beyond, -torch.inf)
    tokens = None if last - first == num_tokens else torch.arange(first, last)
    return DecodePart(tokens, geometry.block_rows(table), 1, mask[:, None, None])


def _prefill_part(first: int, last: int, seq_len: int, table: Tensor, geometry: PoolGeometry) -> PrefillPart:
    query_len = last - first
    if query_len == seq_len:
        return PrefillPart(first, last, None, seq_len, None)
    positions = torch.arange(seq_len)
    mask = positions <= positions[seq_len - query_len :, None]
    return PrefillPart(first, last, geometry.block_rows(table[: geometry.num_blocks(seq_len)]), seq_len, mask)


def _attend_decode(part: DecodePart, rows: LayerRows, q: Tensor, num_kv_heads: int, scale: float) -> Tensor:
    """The query heads that share a KV head are rows of one product: K and V are not repeated."""
    num_tokens, num_q_heads, head_dim = q.shape
    gathered = rows.blocks.index_select(0, part.block_rows).view(2, part.num_requests, -1, num_kv_heads, head_dim)
    keys, values = gathered.expand(-1, num_tokens, -1, -1, -1).transpose(2, 3)
    grouped = q.view(num_tokens, num_kv_heads, num_q_heads // num_kv_heads, head_dim)
    output = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=part.mask, scale=scale)
    return output.reshape(num_tokens, -1)


def _attend_prefill(part: PrefillPart, rows: LayerRows, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    num_tokens, _, head_dim = q.shape
    keys, values = k, v
    if part.block_rows is not None:
        gathered = rows.blocks.index_select(0, part.block_rows).view(2, -1, k.shape[1], head_dim)
        keys, values = gathered[:, : part.seq_len]
    output = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=part.mask,
        is_causal=part.mask is None,
        scale=scale,
        enable_gqa=True,
    )
    return output[0].transpose(0, 1).reshape(num_tokens, -1)
