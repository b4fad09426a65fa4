"""Block sizes and split rules of every kernel in one place: what to change when tuning for a chip.

Chosen by measurement on an H200 at the shapes of Llama-3.1-8B in bfloat16: docs/results/h200-kernels.md.
"""

from typing import NamedTuple

import torch
import triton

MIN_DOT = 16
"""`tl.dot` needs at least 16 rows, columns and terms."""

LORA_BLOCK_RANK = 16
"""Rank rows in one product."""
LORA_RANK_LANES = 4
"""Programs that share a segment's ranks in shrink; one lane walks them all where ranks are small."""
SHRINK_BLOCK_IN = 128
EXPAND_BLOCK_OUT = 128
"""Output features at once."""
ACTIVATION_BLOCK_OUT, ACTIVATION_CHUNK = 64, 1024
"""Output features at once and of one program, where LoRA's second half and the activation are one."""
DECODE_SPLIT_IN, PREFILL_SPLIT_IN = 512, 4096
"""Input features of one split. They depend on nothing in the batch, so neither do a token's sums."""

GATHER_BLOCK = 256
"""Entries of a block table that a program copies at once."""

SORT_BLOCK, SORT_CHUNK = 32, 128
"""Tokens that a program places, and tokens that it compares them with at once."""

SKINNY_MAX_TOKENS = 64
"""Beyond, tokens are read so often that a tile shared between multiprocessors (cuBLAS) is faster."""
SKINNY_FEW_TILES, SKINNY_MANY_TILES = 640, 896
"""Tiles of the weight on their way, of all programs: up to 16 tokens, and beyond, where tiles are half as wide."""
SKINNY_BLOCK_OUT, SKINNY_BLOCK_IN = 64, 128
"""Rows and at most columns of the weight that a program of a skinny product multiplies at once."""

INVARIANT_BLOCK_ROWS, INVARIANT_BLOCK_OUT, INVARIANT_BLOCK_IN = 64, 64, 128
"""The one tile of products that must not depend on the number of rows: between what decode and prefill would like."""

GREEDY_BLOCK = 4096
"""Logits that one program compares."""

SAMPLE_LANE = 1024
"""Tokens per Philox output; a program covers four lanes. Part of the random stream: changing it changes draws."""

TRUNCATE_BLOCK = 8192
"""Logits that a program holds at once; it goes over its row some thirty times."""

DECODE_PROGRAMS = 528
"""Programs that fill the chip: four to a multiprocessor."""
DECODE_MIN_SPLIT = 32
"""Keys below which a split is not worth its share of the reduction."""
DECODE_MAX_SPLITS = 32


class SkinnyTiles(NamedTuple):
    block_tokens: int
    block_in: int
    num_stages: int
    """Tiles on their way at once: what hides the wait for memory."""


def skinny_tiles(num_tokens: int, num_programs: int) -> SkinnyTiles:
    """The fewer programs share the chip, the more tiles each must have on their way."""
    if num_tokens <= MIN_DOT:
        stages = min(7, max(4, triton.cdiv(SKINNY_FEW_TILES, num_programs)))
        return SkinnyTiles(MIN_DOT, SKINNY_BLOCK_IN, stages)
    stages = min(7, max(3, triton.cdiv(SKINNY_MANY_TILES, num_programs)))
    return SkinnyTiles(32 if num_tokens <= 32 else SKINNY_MAX_TOKENS, SKINNY_BLOCK_IN // 2, stages)


class AttentionTiles(NamedTuple):
    block_rows: int
    """Rows of a product: query tokens times the grouped heads."""
    tile_keys: int
    num_warps: int
    num_stages: int


def prefill_tiles(head_dim: int, dtype: torch.dtype) -> AttentionTiles:
    if dtype == torch.float32:
        return AttentionTiles(block_rows=16, tile_keys=16, num_warps=4, num_stages=2)
    if head_dim > 128:
        return AttentionTiles(block_rows=64, tile_keys=32, num_warps=8, num_stages=2)
    return AttentionTiles(block_rows=256, tile_keys=64, num_warps=8, num_stages=3)


def decode_tiles(head_dim: int, dtype: torch.dtype, group_size: int, num_programs: int) -> AttentionTiles:
    block_rows = max(MIN_DOT, triton.next_power_of_2(group_size))
    if dtype == torch.float32:
        return AttentionTiles(block_rows, tile_keys=16, num_warps=4, num_stages=2)
    is_chip_full = num_programs >= DECODE_PROGRAMS
    return AttentionTiles(block_rows, tile_keys=32, num_warps=2 if is_chip_full else 4, num_stages=2)


def decode_splits(num_requests: int, num_kv_heads: int, max_seq_len: int) -> int:
    """A power of two. Requests divide their own length by it, so a captured graph stays right as they grow."""
    wanted = DECODE_PROGRAMS // max(1, num_requests * num_kv_heads)
    useful = triton.cdiv(max_seq_len, DECODE_MIN_SPLIT)
    splits: int = max(1, min(wanted, useful, DECODE_MAX_SPLITS))
    return 1 << (splits.bit_length() - 1)


def shrink_split(in_features: int, segment_size: int) -> int:
    """Input features of one split: decode needs the parallelism, longer segments pay for partial sums."""
    return min(in_features, DECODE_SPLIT_IN if segment_size == MIN_DOT else PREFILL_SPLIT_IN)


def expand_chunk(segment_size: int, max_segments: int) -> int:
    """Output features of one program. Few segments need programs, many need bytes on their way in each."""
    if segment_size > MIN_DOT:
        return 8 * EXPAND_BLOCK_OUT
    return 4 * EXPAND_BLOCK_OUT if max_segments > 16 else EXPAND_BLOCK_OUT


def lora_warps(segment_size: int) -> int:
    return {16: 2, 32: 4, 64: 4, 128: 8}[segment_size]


def activation_warps(segment_size: int) -> int:
    """As many as move 16 bytes a thread: with more, loads and stores would be narrower."""
    return min(8, segment_size * ACTIVATION_BLOCK_OUT // (8 * 32))
