"""The CPU's compiled kernels. Float32 inside, words in memory."""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray

from descant_engine.layers.cpu_jit import Kernel, Parameter, compile_kernel, inlined, narrow, widen

WORDS, FLOATS, INT32S, INT64S, INT = (
    Parameter.WORDS,
    Parameter.FLOATS,
    Parameter.INT32S,
    Parameter.INT64S,
    Parameter.INT,
)


@cache
def add_lora_kernel(dtype: torch.dtype) -> Kernel:
    """See `_add_lora` for its arguments."""
    tables = (WORDS, INT64S, INT64S, INT32S, FLOATS, INT, INT, INT)
    return compile_kernel(_add_lora, (WORDS, WORDS, INT, INT32S, *tables, INT, INT, INT, INT64S, INT64S), dtype)


def _add_lora(
    x: Any,
    output: Any,
    num_tokens: int,
    token_adapter_slot: Any,
    pool: Any,
    a_offsets: Any,
    b_offsets: Any,
    lora_ranks: Any,
    scalings: Any,
    entries_per_slot: int,
    max_tiles: int,
    rank_tile: int,
    first_entry: int,
    in_features: int,
    num_modules: int,
    modules: Any,
    widths: Any,
) -> None:
    """output [T, sum(widths)] += what each token's adapter makes of x [T, in_features].

    The tables are `forward_context.LoraTables`. An entry is one module of one layer of one slot: slot *
    entries_per_slot + first_entry + module.
    """
    out_features = 0
    for group_index in range(num_modules):
        out_features += widths[group_index]
    inputs = np.empty(in_features, np.float32)
    delta = np.empty(out_features, np.float32)
    for token in range(num_tokens):
        slot = token_adapter_slot[token]
        if slot < 0:
            continue
        _widen_row(carray(x, ((token + 1) * in_features,))[token * in_features :], inputs)
        column = 0
        for group_index in range(num_modules):
            width = widths[group_index]
            entry = slot * entries_per_slot + first_entry + modules[group_index]
            if lora_ranks[entry] > 0:
                own = delta[:width]
                own[:] = 0
                for rank_row in range(0, lora_ranks[entry], 4):
                    tile = entry * max_tiles + rank_row // rank_tile
                    row = rank_row % rank_tile
                    num_rows = min(4, lora_ranks[entry] - rank_row)
                    lora_a = _four_rows(pool, a_offsets[tile] + row * in_features, in_features, num_rows)
                    lora_b = _four_rows(pool, b_offsets[tile] + row * width, width, num_rows)
                    _expand(_shrink(inputs, lora_a, num_rows, scalings[entry]), lora_b, own)
                end = token * out_features + column + width
                _add_row(carray(output, (end,))[end - width :], own)
            column += width


@inlined
def _widen_row(row: Any, floats: Any) -> None:
    for i in range(len(floats)):
        floats[i] = widen(row[i])


@inlined
def _add_row(row: Any, floats: Any) -> None:
    for i in range(len(floats)):
        row[i] = narrow(widen(row[i]) + floats[i], row[i])


@inlined
def _four_rows(pool: Any, offset: int, width: int, num_rows: int) -> Any:
    """Rows beyond num_rows (1 to 4) are the last one again."""
    end = offset + num_rows * width
    rows = carray(pool, (end,))
    second, third = offset + min(1, num_rows - 1) * width, offset + min(2, num_rows - 1) * width
    return (
        rows[offset : offset + width],
        rows[second : second + width],
        rows[third : third + width],
        rows[end - width : end],
    )


@inlined
def _shrink(inputs: Any, lora_a: Any, num_rows: int, scaling: Any) -> Any:
    """Four products at once, so that an input is loaded once. Those of rows that there are not are 0."""
    a0, a1, a2, a3 = lora_a
    s0 = s1 = s2 = s3 = np.float32(0)
    for i in range(len(inputs)):
        s0 += inputs[i] * widen(a0[i])
        s1 += inputs[i] * widen(a1[i])
        s2 += inputs[i] * widen(a2[i])
        s3 += inputs[i] * widen(a3[i])
    zero = np.float32(0)
    return (
        s0 * scaling,
        s1 * scaling if num_rows > 1 else zero,
        s2 * scaling if num_rows > 2 else zero,
        s3 * scaling if num_rows > 3 else zero,
    )


@inlined
def _expand(shrunk: Any, lora_b: Any, delta: Any) -> None:
    s0, s1, s2, s3 = shrunk
    b0, b1, b2, b3 = lora_b
    for i in range(len(delta)):
        delta[i] += s0 * widen(b0[i]) + s1 * widen(b1[i]) + s2 * widen(b2[i]) + s3 * widen(b3[i])
