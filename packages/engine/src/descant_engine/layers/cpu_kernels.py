"""The CPU's compiled kernels. Float32 inside, words in memory."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray

from descant_engine.layers.cpu_jit import Kernel, Parameter, compile_kernel, inlined, narrow, power_of_two, widen

WORDS, FLOATS, INT32S, INT64S = Parameter.WORDS, Parameter.FLOATS, Parameter.INT32S, Parameter.INT64S
INT, FLOAT = Parameter.INT, Parameter.FLOAT


class CpuKernels(NamedTuple):
    """Their arguments are those of the functions below."""

    rms_norm: Kernel
    add_rms_norm: Kernel
    rotary: Kernel
    silu_mul: Kernel
    add_lora: Kernel


@cache
def kernels_for(dtype: torch.dtype) -> CpuKernels:
    """Compiles them, or reads them from Numba's cache: seconds or milliseconds."""
    tables = (WORDS, INT64S, INT64S, INT32S, FLOATS, INT, INT, INT)
    return CpuKernels(
        compile_kernel(_rms_norm, (WORDS, WORDS, WORDS, INT, INT, FLOAT), dtype),
        compile_kernel(_add_rms_norm, (WORDS, WORDS, WORDS, WORDS, INT, INT, FLOAT), dtype),
        compile_kernel(_rotary, (WORDS, INT, INT, INT, INT, INT64S, FLOATS), dtype),
        compile_kernel(_silu_mul, (WORDS, WORDS, INT, INT), dtype),
        compile_kernel(_add_lora, (WORDS, WORDS, INT, INT32S, *tables, INT, INT, INT, INT64S, INT64S), dtype),
    )


def _rms_norm(x: Any, weight: Any, output: Any, num_rows: int, width: int, eps: float) -> None:
    """output = x / rms(x) * weight, row by row."""
    row = np.empty(width, np.float32)
    for first in range(0, num_rows * width, width):
        _widen_row(_slice(x, first, width), row)
        _write_normed(row, carray(weight, (width,)), eps, _slice(output, first, width))


def _add_rms_norm(x: Any, residual: Any, weight: Any, output: Any, num_rows: int, width: int, eps: float) -> None:
    """residual += x; output = residual / rms(residual) * weight, row by row."""
    row = np.empty(width, np.float32)
    for first in range(0, num_rows * width, width):
        total = _slice(residual, first, width)
        _widen_row(_slice(x, first, width), row)
        _add_row(total, row)
        _widen_row(total, row)
        _write_normed(row, carray(weight, (width,)), eps, _slice(output, first, width))


@inlined
def _write_normed(row: Any, weight: Any, eps: float, output: Any) -> None:
    squares = np.float32(0)
    for i in range(len(row)):
        squares += row[i] * row[i]
    inverse = np.float32(1) / np.sqrt(squares / np.float32(len(row)) + eps)
    for i in range(len(row)):
        output[i] = narrow(row[i] * inverse * widen(weight[i]), output[i])


def _rotary(
    heads: Any, num_tokens: int, num_heads: int, head_dim: int, token_stride: int, positions: Any, cos_sin: Any
) -> None:
    """In place, each head h: [h1 cos - h2 sin, h2 cos + h1 sin], (h1, h2) its halves."""
    half = head_dim // 2
    for token in range(num_tokens):
        cos = _slice(cos_sin, positions[token] * head_dim, half)
        sin = _slice(cos_sin, positions[token] * head_dim + half, half)
        for head in range(num_heads):
            offset = token * token_stride + head * head_dim
            _turn(_slice(heads, offset, half), _slice(heads, offset + half, half), cos, sin)


@inlined
def _turn(left: Any, right: Any, cos: Any, sin: Any) -> None:
    """Cosines and sines are rounded to words first, as the models were trained."""
    for i in range(len(left)):
        x, y = widen(left[i]), widen(right[i])
        c, s = widen(narrow(cos[i], left[i])), widen(narrow(sin[i], left[i]))
        left[i] = narrow(x * c - y * s, left[i])
        right[i] = narrow(y * c + x * s, right[i])


def _silu_mul(gate_up: Any, output: Any, num_rows: int, width: int) -> None:
    """gate_up [rows, 2 * width] -> silu(left half) * right half. SiLU is rounded before it is multiplied, as the models
    were trained."""
    for row in range(num_rows):
        gate = _slice(gate_up, 2 * row * width, width)
        _gate(gate, _slice(gate_up, (2 * row + 1) * width, width), _slice(output, row * width, width))


@inlined
def _gate(gate: Any, up: Any, output: Any) -> None:
    for i in range(len(output)):
        x = widen(gate[i])
        silu = narrow(x / (np.float32(1) + _exp(-x)), gate[i])
        output[i] = narrow(widen(silu) * widen(up[i]), gate[i])


@inlined
def _exp(x: Any) -> Any:
    """e ** x for x in [-87, 88], which it is clamped to, within 2 units in the last place: 2 ** n * e ** r, r at most
    ln(2) / 2, and e ** r by its series. A call of the C library's would keep the loop from being vectorised."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    series = np.float32(1 / 720) + r * np.float32(1 / 5040)
    series = np.float32(1 / 24) + r * (np.float32(1 / 120) + r * series)
    series = np.float32(1) + r * (np.float32(1) + r * (np.float32(1 / 2) + r * (np.float32(1 / 6) + r * series)))
    return series * power_of_two(n)


@inlined
def _slice(words: Any, first: int, length: int) -> Any:
    return carray(words, (first + length,))[first:]


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
        _widen_row(_slice(x, token * in_features, in_features), inputs)
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
                _add_row(_slice(output, token * out_features + column, width), own)
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
    last = num_rows - 1
    return (
        _slice(pool, offset, width),
        _slice(pool, offset + min(1, last) * width, width),
        _slice(pool, offset + min(2, last) * width, width),
        _slice(pool, offset + last * width, width),
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
