"""Products whose rows do not depend on the rows beside them, bit for bit.

A library chooses its tiles and splits by the number of rows, and with them the order of each sum. Here one tile serves
every number of rows, and each sum runs over the input features from the first to the last. (Why outputs otherwise
change with the load: He et al., "Defeating nondeterminism in LLM inference", 2025.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.tuning import INVARIANT_BLOCK_IN, INVARIANT_BLOCK_OUT, INVARIANT_BLOCK_ROWS


def invariant_product(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, accumulated in float32, rounded once.

    Args:
        x: [num_tokens, in_features], rows contiguous.
        weight: [out_features, in_features], contiguous, of x's dtype.
        bias: [out_features].
        out: where the result goes, [num_tokens, out_features], contiguous; a new tensor by default.
    """
    num_tokens, in_features = x.shape
    out_features = weight.shape[0]
    if x.stride(-1) != 1 or not weight.is_contiguous() or weight.shape[1] != in_features or weight.dtype != x.dtype:
        raise ValueError(f"no product of x {tuple(x.shape)} {x.dtype} and weight {tuple(weight.shape)} {weight.dtype}")
    if out is None:
        out = torch.empty((num_tokens, out_features), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(num_tokens, INVARIANT_BLOCK_ROWS), triton.cdiv(out_features, INVARIANT_BLOCK_OUT))
    _invariant_product_kernel[grid](
        out,
        x,
        weight,
        weight if bias is None else bias,
        num_tokens,
        in_features,
        out_features,
        x.stride(0),
        HAS_BIAS=bias is not None,
        BLOCK_ROWS=INVARIANT_BLOCK_ROWS,
        BLOCK_OUT=INVARIANT_BLOCK_OUT,
        BLOCK_IN=INVARIANT_BLOCK_IN if x.dtype != torch.float32 else INVARIANT_BLOCK_IN // 4,
        num_warps=4,
        num_stages=4,
    )
    return out


@triton.jit(do_not_specialize=["num_tokens"])
def _invariant_product_kernel(
    out,
    x,
    weight,
    bias,
    num_tokens,
    in_features,
    out_features,
    x_stride,
    HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    # Neighbours in time share the weight's rows: they are the larger part of the bytes.
    token = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_token, is_row = token < num_tokens, row < out_features
    x_rows = x + (token.to(tl.int64) * x_stride)[:, None]
    weight_rows = weight + (row.to(tl.int64) * in_features)[None, :]
    acc = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
    for begin in range(0, in_features, BLOCK_IN):
        column = begin + tl.arange(0, BLOCK_IN)
        is_column = column < in_features
        x_tile = tl.load(x_rows + column[None, :], mask=is_token[:, None] & is_column[None, :], other=0.0)
        weight_tile = tl.load(weight_rows + column[:, None], mask=is_row[None, :] & is_column[:, None], other=0.0)
        acc = tl.dot(x_tile, weight_tile, acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)[None, :]
    target = out + token.to(tl.int64)[:, None] * out_features + row[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=is_token[:, None] & is_row[None, :])
