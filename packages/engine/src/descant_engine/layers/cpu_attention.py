"""Paged attention in torch. The index arithmetic is done once per step (AttentionPlan); a layer then does a write, a
gather and one or more scaled dot products.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from descant_engine.forward_context import AttentionInputs, KvCache


@dataclass(frozen=True, slots=True)
class LayerRows:
    """One layer's K and V seen as rows of the pool, so that an index gathers or writes both without copying first.

    A block holds, for every layer, first its tokens' K, then their V; both views start at the layer's first K.
    """

    blocks: Tensor
    """[rows, block_size * kvh * d]: K of block b is row b * blocks_stride, its V the next."""
    tokens: Tensor
    """[rows, kvh * d]: K of token t of block b is row b * tokens_stride + t, its V block_size rows further."""

    @classmethod
    def of(cls, cache: KvCache) -> Self:
        keys, values = cache
        num_blocks, block_size, num_kv_heads, head_dim = keys.shape
        width = num_kv_heads * head_dim
        assert values.storage_offset() - keys.storage_offset() == block_size * width, "V must follow K in a block"
        length = (num_blocks - 1) * keys.stride(0) + 2 * block_size * width

        def rows_of(row: int) -> Tensor:
            return keys.as_strided((length // row, row), (row, 1))

        return cls(rows_of(block_size * width), rows_of(width))


@dataclass(frozen=True, slots=True)
class DecodePart:
    """All requests with one query token, padded to the longest."""

    tokens: Tensor | None
    """[num_requests] rows of q; None if they are all there is."""
    block_rows: Tensor
    """[2 * num_requests * num_blocks] for LayerRows.blocks: K of every request, then V."""
    mask: Tensor
    """[num_requests, 1, 1, padded length]: 0 or -inf, added to the scores."""


@dataclass(frozen=True, slots=True)
class PrefillPart:
    """One request with several query tokens."""

    first: int
    last: int
    """Tokens [first, last) of the step."""
    block_rows: Tensor | None
    """[2 * num_blocks]; None if the step has all of the request's tokens, so that nothing need be gathered."""
    seq_len: int
    mask: Tensor | None
    """[query_len, seq_len] bool; None if plainly causal."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    write_rows: Tensor
    """[2 * num_tokens] for LayerRows.tokens: where each token's K goes, then where its V goes."""
    fresh_blocks: Tensor
    """Blocks that get their first token in this step."""
    decode: DecodePart | None
    prefills: tuple[PrefillPart, ...]

    @classmethod
    def of(cls, inputs: AttentionInputs, cache: KvCache, dtype: torch.dtype) -> Self:
        block_size, width = cache.keys.shape[1], cache.keys.shape[2] * cache.keys.shape[3]
        blocks, offsets = inputs.slot_mapping // block_size, inputs.slot_mapping % block_size
        key_rows = blocks * (cache.keys.stride(0) // width) + offsets
        starts, seq_lens = inputs.query_start_loc.tolist(), inputs.seq_lens.tolist()
        block_stride = cache.keys.stride(0) // (width * block_size)
        single = [i for i in range(len(seq_lens)) if starts[i + 1] - starts[i] == 1]
        prefills = tuple(
            _prefill_part(starts[i], starts[i + 1], seq_lens[i], inputs.block_tables[i], block_size, block_stride)
            for i in range(len(seq_lens))
            if starts[i + 1] - starts[i] > 1
        )
        decode = _decode_part(inputs, single, starts, block_size, block_stride, dtype) if single else None
        return cls(torch.cat([key_rows, key_rows + block_size]), blocks[offsets == 0], decode, prefills)

    def clear_fresh_blocks(self, caches: tuple[KvCache, ...]) -> None:
        """Zeros the blocks that start now. Gathers read whole blocks, and a masked token counts for 0 times its value:
        what a former owner left behind might be NaN.
        """
        if len(self.fresh_blocks):
            whole = caches[0].keys.as_strided(
                (len(caches[0].keys), caches[0].keys.stride(0)), (caches[0].keys.stride(0), 1), 0
            )
            whole.index_fill_(0, self.fresh_blocks, 0)


def attend(plan: AttentionPlan, rows: LayerRows, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Writes k and v [T, kvh, d], then q [T, qh, d] -> [T, qh * d]."""
    num_tokens = len(q)
    rows.tokens.index_copy_(0, plan.write_rows[:num_tokens], k.flatten(1))
    rows.tokens.index_copy_(0, plan.write_rows[num_tokens:], v.flatten(1))
    if plan.decode is not None and plan.decode.tokens is None:
        return _attend_decode(plan.decode, rows, q, k.shape[1], scale)
    output = q.new_empty(num_tokens, q.shape[1] * q.shape[2])
    if plan.decode is not None:
        output[plan.decode.tokens] = _attend_decode(plan.decode, rows, q[plan.decode.tokens], k.shape[1], scale)
    for part in plan.prefills:
        here = slice(part.first, part.last)
        output[here] = _attend_prefill(part, rows, q[here], k[here], v[here], scale)
    return output


def _decode_part(
    inputs: AttentionInputs, single: list[int], starts: list[int], block_size: int, stride: int, dtype: torch.dtype
) -> DecodePart:
    all_of_them = len(single) == len(inputs.seq_lens)
    seq_lens, tables = inputs.seq_lens, inputs.block_tables
    if not all_of_them:
        seq_lens, tables = seq_lens[single], tables[single]
    num_blocks = -(-int(seq_lens.max()) // block_size)
    tables = _own_blocks(tables[:, :num_blocks], seq_lens, block_size)
    key_rows = (tables * stride).flatten()
    beyond = torch.arange(num_blocks * block_size) >= seq_lens[:, None]
    mask = torch.zeros(beyond.shape, dtype=dtype).masked_fill_(beyond, -torch.inf)
    return DecodePart(
        None if all_of_them else torch.tensor([starts[i] for i in single]),
        torch.cat([key_rows, key_rows + 1]),
        mask[:, None, None],
    )


def _own_blocks(tables: Tensor, seq_lens: Tensor, block_size: int) -> Tensor:
    """Entries past a request's end are undefined: let them be its first block, which is its own and finite."""
    used = torch.arange(tables.shape[1]) * block_size < seq_lens[:, None]
    return torch.where(used, tables, tables[:, :1]).to(torch.int64)


def _prefill_part(first: int, last: int, seq_len: int, table: Tensor, block_size: int, stride: int) -> PrefillPart:
    query_len = last - first
    if query_len == seq_len:
        return PrefillPart(first, last, None, seq_len, None)
    key_rows = table[: -(-seq_len // block_size)].to(torch.int64) * stride
    positions = torch.arange(seq_len)
    mask = positions <= positions[seq_len - query_len :, None]
    return PrefillPart(first, last, torch.cat([key_rows, key_rows + 1]), seq_len, mask)


def _attend_decode(part: DecodePart, rows: LayerRows, q: Tensor, num_kv_heads: int, scale: float) -> Tensor:
    """The query heads that share a KV head are rows of one product: K and V are not repeated."""
    num_requests, num_q_heads, head_dim = q.shape
    gathered = rows.blocks.index_select(0, part.block_rows).view(2, num_requests, -1, num_kv_heads, head_dim)
    keys, values = gathered.transpose(2, 3)
    grouped = q.view(num_requests, num_kv_heads, num_q_heads // num_kv_heads, head_dim)
    output = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=part.mask, scale=scale)
    return output.reshape(num_requests, -1)


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
