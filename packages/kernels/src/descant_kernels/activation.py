"""The gated activation of Llama's MLP (SwiGLU; Shazeer, 2020)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.partial_sums import load_sum, partial_sums

SILU_BLOCK = 1024


def silu_mul(gate_up: Tensor) -> Tensor:
    """y = silu(gate) * up with [gate | up] = gate_up, in float32, rounded once.

    Args:
        gate_up: [num_tokens, 2 * intermediate], rows contiguous; or partial sums of it, [splits, num_tokens, ...],
            which are added up in their order.

    Returns:
        [num_tokens, intermediate], contiguous, of gate_up's dtype.
    """
    num_tokens, width = gate_up.shape[-2:]
    if width % 2 or gate_up.stride(-1) != 1:
        raise ValueError(f"gate_up needs an even width ({width}) and contiguous rows (stride {gate_up.stride(-1)})")
    out = torch.empty((num_tokens, width // 2), dtype=gate_up.dtype, device=gate_up.device)
    grid = (num_tokens, triton.cdiv(width // 2, SILU_BLOCK))
    splits, split_stride = partial_sums(gate_up, 2)
    _silu_mul_kernel[grid](out, gate_up, width // 2, gate_up.stride(-2), split_stride, SPLITS=splits, BLOCK=SILU_BLOCK)
    return out


@triton.jit
def _silu_mul_kernel(out, gate_up, width, stride, split_stride, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    source = gate_up + row * stride + columns
    gate = load_sum(source, mask, split_stride, SPLITS)
    up = load_sum(source + width, mask, split_stride, SPLITS)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + row * width + columns, result.to(out.dtype.element_ty), mask=mask)
