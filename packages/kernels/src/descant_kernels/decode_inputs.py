"""What a decode step reads, gathered from the request rows in one launch."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.tuning import GATHER_BLOCK

NOT_CACHED: int = tl.constexpr(-1)
"""In a slot mapping: `kv_write` skips the token."""


class RequestRows(NamedTuple):
    """One row for each request; see `DecodeInputs` for what is taken of it."""

    token_ids: Tensor
    """[num_rows, max_len] int64, rows contiguous"""
    block_tables: Tensor
    """[num_rows, max_blocks] int32, rows contiguous"""
    adapter_slots: Tensor
    """[num_rows] int32; -1 = base"""


class DecodeInputs(NamedTuple):
    input_ids: Tensor
    """[n] int64: each request's newest token"""
    seq_lens: Tensor
    """[n] int32: tokens up to and with it"""
    slot_mapping: Tensor
    """[n] int64: block_id * block_size + offset, where its keys and values go; -1 for the row that pads"""
    block_tables: Tensor
    """[n, max_blocks] int32; undefined past the sequence"""
    adapter_slots: Tensor
    """[n] int32"""


def decode_inputs(
    rows: Tensor, positions: Tensor, requests: RequestRows, block_size: int, padding_row: int
) -> DecodeInputs:
    """Of requests `rows` [n] int64 whose newest tokens are at `positions` [n] int64."""
    num_requests, max_blocks = len(rows), requests.block_tables.shape[1]

    def room(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty((num_requests, *shape), dtype=dtype, device=rows.device)

    inputs = DecodeInputs(
        input_ids=room(),
        seq_lens=room(dtype=torch.int32),
        slot_mapping=room(),
        block_tables=room(max_blocks, dtype=torch.int32),
        adapter_slots=room(dtype=torch.int32),
    )
    _decode_inputs_kernel[(num_requests,)](
        *inputs,
        rows,
        positions,
        *requests,
        max_blocks,
        requests.token_ids.stride(0),
        block_size,
        padding_row,
        BLOCK=GATHER_BLOCK,
    )
    return inputs


@triton.jit(do_not_specialize_on_alignment=["rows", "positions"])
def _decode_inputs_kernel(
    input_ids,
    seq_lens,
    slot_mapping,
    tables,
    slots,
    rows,
    positions,
    token_ids,
    block_tables,
    adapter_slots,
    max_blocks,
    token_stride,
    block_size,
    padding_row,
    BLOCK: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + request)
    position = tl.load(positions + request)
    own_table = block_tables + row * max_blocks
    block = tl.load(own_table + position // block_size).to(tl.int64)
    slot = tl.where(row == padding_row, NOT_CACHED, block * block_size + position % block_size)
    tl.store(slot_mapping + request, slot)
    tl.store(input_ids + request, tl.load(token_ids + row * token_stride + position))
    tl.store(seq_lens + request, (position + 1).to(tl.int32))
    tl.store(slots + request, tl.load(adapter_slots + row))
    num_blocks = position // block_size + 1
    for first in range(0, num_blocks, BLOCK):
        column = first + tl.arange(0, BLOCK)
        mask = column < num_blocks
        tl.store(tables + request * max_blocks + column, tl.load(own_table + column, mask=mask), mask=mask)
