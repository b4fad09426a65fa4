"""The parts of a step, and which part a kernel belongs to, by its name."""

import re
from enum import StrEnum
from functools import cache
from typing import Final


class Part(StrEnum):
    DENSE = "dense products"
    ATTENTION = "attention"
    LORA_SHRINK = "lora shrink"
    LORA_EXPAND = "lora expand"
    LORA_SEGMENTS = "lora segments"
    LORA = "lora"
    """Shrink and expand where they cannot be told apart, on the CPU."""
    SAMPLING = "sampling"
    NORM = "norm"
    ROTARY = "rotary and KV write"
    ACTIVATION = "activation"
    INPUTS = "inputs"
    """Gathering the step's tokens, positions and block tables from the request rows."""
    COPIES = "copies"
    HOST = "host"
    """On the CPU: Python outside of the other parts."""
    UNKNOWN = "unknown"


_KERNELS: Final[tuple[tuple[Part, re.Pattern[str]], ...]] = tuple(
    (part, re.compile(pattern, re.IGNORECASE))
    for part, pattern in (
        (Part.COPIES, r"^mem(cpy|set)"),
        (Part.LORA_SEGMENTS, r"segment|place_tokens"),
        (Part.LORA_SHRINK, r"shrink"),
        (Part.LORA_EXPAND, r"expand"),
        (
            Part.ATTENTION,
            r"attention|attend|_decode_kernel|_prefill_kernel|join_splits|flash|fmha|sdpa|mha_fwd|cudnn_gen",
        ),
        (Part.ROTARY, r"rotary|rope|kv_write"),
        (Part.ACTIVATION, r"silu|swiglu|activation"),
        (Part.NORM, r"norm"),
        (
            Part.SAMPLING,
            r"sample|largest|best_of|greedy|argmax|gumbel|softmax|top_?[kp]|penalt|bitmask|exponential|sort",
        ),
        (Part.DENSE, r"nvjet|gemm|cutlass|cublas|xmma|splitk|skinny|product|linear"),
        (Part.INPUTS, r"inputs|prepare|gather|index|scatter|elementwise|arange|fill|cat|embedding|reduce|vectorized"),
    )
)
"""First match wins: a kernel that does two parts' work is named after both, and counts for the earlier one here."""


@cache
def part_of_kernel(name: str) -> Part:
    return next((part for part, pattern in _KERNELS if pattern.search(name)), Part.UNKNOWN)
