"""Outputs that their one reader adds up: a product's splits, and what adapters add to it.

A tensor of partial sums has one dimension more than the tensor it stands for, in front. Its terms may have been made
by different kernels, at the same time.
"""

import triton
import triton.language as tl
from torch import Tensor


def partial_sums(x: Tensor, whole_dim: int) -> tuple[int, int]:
    """(number of terms, stride between them) of x, which has `whole_dim` dimensions if it is a whole tensor."""
    return (x.shape[0], x.stride(0)) if x.dim() == whole_dim + 1 else (1, 0)


@triton.jit
def load_sum(source, mask, split_stride, SPLITS: tl.constexpr):
    """float32 sum of the terms, in their order; 0 outside the mask."""
    total = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(source + split * split_stride, mask=mask, other=0.0).to(tl.float32)
    return total
