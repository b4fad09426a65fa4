"""Products of a few tokens with a wide weight: a stream of the weight's bytes, and nothing else counts."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels.tuning import SKINNY_BLOCK_IN, SKINNY_BLOCK_OUT, SKINNY_MAX_TOKENS, skinny_tiles


def can_multiply(num_tokens: int, weight: Tensor, splits: int) -> bool:
    """Whether `skinny_product` takes these shapes; other products are for cuBLAS."""
    out_features, in_features = weight.shape
    return (
        0 < num_tokens <= SKINNY_MAX_TOKENS
        and weight.dtype in (torch.bfloat16, torch.float16)
        and out_features % SKINNY_BLOCK_OUT == 0
        and in_features % (splits * SKINNY_BLOCK_IN) == 0
    )


def skinny_product(x: Tensor, weight: Tensor, splits: int, out: Tensor | None = None) -> Tensor:
    """sum(y, dim=0)[t, n] = x[t] . weight[n], for up to 64 tokens; accumulated in float32.

    Args:
        x: [num_tokens, in_features], rows contiguous, of the weight's dtype (bfloat16 or float16).
        weight: [out_features, in_features], contiguous; see `can_multiply` for what sizes must divide.
        splits: parts that the input features are cut into.
        out: where the result goes; a new tensor by default.

    Returns:
        [splits, num_tokens, out_features] float32, to be added up by whoever reads it; with one split, the product
        itself: [1, num_tokens, out_features] in x's dtype.
    """
    num_tokens, in_features = x.shape
    out_features = weight.shape[0]
    if not can_multiply(num_tokens, weight, splits) or x.stride(-1) != 1 or not weight.is_contiguous():
        raise ValueError(f"no skinny product for x {tuple(x.shape)}, weight {tuple(weight.shape)} in {splits} splits")
    if out is None:
        dtype = x.dtype if splits == 1 else torch.float32
        out = torch.empty((splits, num_tokens, out_features), dtype=dtype, device=x.device)
    if out.shape != (splits, num_tokens, out_features) or not out.is_contiguous():
        raise ValueError(f"out must be contiguous, [{splits}, {num_tokens}, {out_features}]; got {tuple(out.shape)}")
    grid = (out_features // SKINNY_BLOCK_OUT, splits)
    tiles = skinny_tiles(num_tokens, num_programs=grid[0] * grid[1])
    _skinny_product_kernel[grid](
        out,
        x,
        weight,
        num_tokens,
        in_features,
        out_features,
        x.stride(0),
        SPLIT_IN=in_features // splits,
        TOKENS=tiles.block_tokens,
        BLOCK_OUT=SKINNY_BLOCK_OUT,
        BLOCK_IN=tiles.block_in,
        num_warps=4,
        num_stages=tiles.num_stages,
    )
    return out


@triton.jit(do_not_specialize=["num_tokens"])
def _skinny_product_kernel(
    out,
    x,
    weight,
    num_tokens,
    in_features,
    out_features,
    x_stride,
    SPLIT_IN: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    split = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    token = tl.arange(0, TOKENS)
    is_token = (token < num_tokens)[None, :]
    weight_rows = weight + row.to(tl.int64)[:, None] * in_features
    x_rows = x + (token * x_stride)[None, :]
    acc = tl.zeros([BLOCK_OUT, TOKENS], tl.float32)
    for begin in range(0, SPLIT_IN, BLOCK_IN):
        column = split * SPLIT_IN + begin + tl.arange(0, BLOCK_IN)
        weight_tile = tl.load(weight_rows + column[None, :])
        x_tile = tl.load(x_rows + column[:, None], mask=is_token, other=0.0)
        acc = tl.dot(weight_tile, x_tile, acc)
    target = out + ((split * num_tokens + token) * out_features)[None, :] + row[:, None]
    tl.store(target, acc.to(out.dtype.element_ty), mask=is_token)
