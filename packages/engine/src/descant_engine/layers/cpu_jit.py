"""Loops compiled by Numba, for work so small that torch's fixed cost of 2 to 20 us an operation would be most of it.

A kernel is a function over pointers, run on the calling thread. Numbers of the model's dtype reach it as words, for
numpy has no bfloat16: `widen` reads a word as float32, `narrow` rounds back; for float32 neither does anything.
"""

import ctypes
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import torch
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

Kernel = Callable[..., None]
"""Takes addresses and numbers, in its parameters' order. Nothing is checked: the caller knows what it points at."""

_WORD_TYPES = {torch.float32: types.float32, torch.bfloat16: types.uint16, torch.float16: types.int16}
_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}
"""What vector units need: sums in any order, and no check for a division by zero. NaN and infinity stay as they are."""
_INT16, _INT32 = ir.IntType(16), ir.IntType(32)


class Parameter(Enum):
    WORDS = auto()
    """A pointer to numbers of the model's dtype."""
    FLOATS = auto()
    """A pointer to float32, whatever the model's dtype is."""
    INT32S = auto()
    INT64S = auto()
    INT = auto()
    FLOAT = auto()


def inlined(function: Callable[..., Any]) -> Any:
    """For what kernels call."""
    return njit(**_OPTIONS)(function)


def compile_kernel(function: Callable[..., None], parameters: tuple[Parameter, ...], dtype: torch.dtype) -> Kernel:
    """Takes a second, and next to nothing once the result is in Numba's cache."""
    signature = types.void(*(_numba_type(parameter, dtype) for parameter in parameters))
    try:
        compiled = cfunc(signature, cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        compiled = cfunc(signature, **_OPTIONS)(function)
    kernel: Kernel = ctypes.CFUNCTYPE(None, *map(_ctype, parameters))(compiled.address)
    kernel.compiled = compiled  # type: ignore[attr-defined] # the machine code lives as long as this
    return kernel


def _numba_type(parameter: Parameter, dtype: torch.dtype) -> Any:
    match parameter:
        case Parameter.WORDS:
            return types.CPointer(_WORD_TYPES[dtype])
        case Parameter.FLOATS:
            return types.CPointer(types.float32)
        case Parameter.INT32S:
            return types.CPointer(types.int32)
        case Parameter.INT64S:
            return types.CPointer(types.int64)
        case Parameter.INT:
            return types.int64
        case Parameter.FLOAT:
            return types.float32


def _ctype(parameter: Parameter) -> Any:
    match parameter:
        case Parameter.INT:
            return ctypes.c_int64
        case Parameter.FLOAT:
            return ctypes.c_float
        case _:
            return ctypes.c_void_p


@intrinsic  # type: ignore[untyped-decorator]
def widen(_typing: Any, word: Any) -> Any:
    """word -> float32"""

    def bfloat16(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.shl(builder.zext(arguments[0], _INT32), _INT32(16))
        return builder.bitcast(bits, ir.FloatType())

    def float16(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    codes = {types.uint16: bfloat16, types.int16: float16, types.float32: _same}
    return types.float32(word), codes[word]


@intrinsic  # type: ignore[untyped-decorator]
def narrow(_typing: Any, value: Any, like: Any) -> Any:
    """float32 -> a word such as `like`, rounded to nearest, ties to even."""

    def bfloat16(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], _INT32)
        odd = builder.and_(builder.lshr(bits, _INT32(16)), _INT32(1))
        rounded = builder.add(builder.add(bits, _INT32(0x7FFF)), odd)
        is_nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        return builder.trunc(builder.lshr(builder.select(is_nan, bits, rounded), _INT32(16)), _INT16)

    def float16(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), _INT16)

    codes = {types.uint16: bfloat16, types.int16: float16, types.float32: _same}
    return like(types.float32, like), codes[like]


@intrinsic  # type: ignore[untyped-decorator]
def power_of_two(_typing: Any, exponent: Any) -> Any:
    """float32 -> float32, for whole numbers from -126 to 127."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        biased = builder.add(builder.fptosi(arguments[0], _INT32), _INT32(127))
        return builder.bitcast(builder.shl(biased, _INT32(23)), ir.FloatType())

    return types.float32(exponent), code


def _same(_context: Any, _builder: Any, _signature: Any, arguments: Any) -> Any:
    return arguments[0]
