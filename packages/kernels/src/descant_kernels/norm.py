"""Root mean square normalization (Zhang and Sennrich, 2019), with and without the residual addition before it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.partial_sums import load_sum, partial_sums

NORM_BLOCK = 2048
"""Elements a program works on at once where rows are short."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y[..., :] = weight * x / sqrt(mean(x^2) + eps), in float32, rounded once.

    Args:
        x: [num_tokens, width] or, for per-head norms, [num_tokens, heads, width]; last dimension contiguous, others
            of any stride. Of heads also partial sums, [splits, num_tokens, heads, width], added up in their order.
        weight: [width].

    Returns:
        A new contiguous tensor of x's dtype and shape, less its splits.
    """
    if x.dim() not in (2, 3, 4) or x.stride(-1) != 1:
        raise ValueError(f"x must have 2 to 4 dimensions, the last contiguous; got {tuple(x.shape)}, {x.stride()}")
    splits, split_stride = partial_sums(x, 3)
    x = x[0] if x.dim() == 4 else x
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    heads = x.shape[1] if x.dim() == 3 else 1
    width = x.shape[-1]
    block_width = triton.next_power_of_2(width)
    block_rows = max(1, NORM_BLOCK // block_width)
    num_rows = x.shape[0] * heads
    _rms_norm_kernel[(triton.cdiv(num_rows, block_rows),)](
        out,
        x,
        weight,
        eps,
        num_rows,
        heads,
        width,
        x.stride(0),
        x.stride(1) if x.dim() == 3 else 0,
        split_stride,
        SPLITS=splits,
        BLOCK_ROWS=block_rows,
        BLOCK_WIDTH=block_width,
        num_warps=norm_warps(block_width),
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """residual += x (rounded to its dtype); returns (rms_norm(residual, weight, eps), residual).

    Args:
        x: [num_tokens, width], rows contiguous; or partial sums of it, [splits, num_tokens, width], which are added up
            in their order.
        residual: [num_tokens, width], rows contiguous; changed in place.
        weight: [width].
    """
    if x.shape[-2:] != residual.shape or x.stride(-1) != 1 or residual.stride(-1) != 1:
        raise ValueError(f"x {tuple(x.shape)} and residual {tuple(residual.shape)} must agree, rows contiguous")
    out = torch.empty(residual.shape, dtype=residual.dtype, device=x.device)
    num_tokens, width = residual.shape
    splits, split_stride = partial_sums(x, 2)
    block_width = triton.next_power_of_2(width)
    _add_rms_norm_kernel[(num_tokens,)](
        out,
        x,
        residual,
        weight,
        eps,
        width,
        x.stride(-2),
        split_stride,
        residual.stride(0),
        SPLITS=splits,
        BLOCK_WIDTH=block_width,
        num_warps=norm_warps(block_width),
    )
    return out, residual


def norm_warps(block_width: int) -> int:
    return min(8, max(4, block_width // 512))


@triton.jit
def _normalize(x, weight, eps, width):
    """x: [rows, width] float32, 0 past the width."""
    mean_square = tl.sum(x * x, axis=1) / width
    return x * tl.rsqrt(mean_square + eps)[:, None] * weight


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    out,
    x,
    weight,
    eps,
    num_rows,
    heads,
    width,
    stride_token,
    stride_head,
    split_stride,
    SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    columns = tl.arange(0, BLOCK_WIDTH)[None, :]
    mask = (rows < num_rows) & (columns < width)
    source = (rows // heads).to(tl.int64) * stride_token + (rows % heads) * stride_head + columns
    values = load_sum(x + source, mask, split_stride, SPLITS)
    scale = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)
    normed = _normalize(values, scale, eps, width)
    tl.store(out + rows.to(tl.int64) * width + columns, normed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _add_rms_norm_kernel(
    out,
    x,
    residual,
    weight,
    eps,
    width,
    x_stride,
    split_stride,
    residual_stride,
    SPLITS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_WIDTH)[None, :]
    mask = columns < width
    place = residual + row * residual_stride + columns
    added = load_sum(x + row * x_stride + columns, mask, split_stride, SPLITS)
    total = (tl.load(place, mask=mask, other=0.0).to(tl.float32) + added).to(residual.dtype.element_ty)
    tl.store(place, total, mask=mask)
    scale = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    normed = _normalize(total.to(tl.float32), scale, eps, width)
    tl.store(out + row * width + columns, normed.to(out.dtype.element_ty), mask=mask)
