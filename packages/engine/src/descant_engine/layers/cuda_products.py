"""Products with a layer's weight on a GPU: alone, or as terms that a later kernel adds up."""

import torch
from torch import Tensor
from torch.nn import functional as F

import descant_kernels as kernels

FEW_TOKENS = 16
"""Up to which a skinny product is faster in every layer, beside an adapter's kernels too. One of more tokens leaves
those less room on the chip than cuBLAS does."""


class DenseProduct:
    """By cuBLAS; a skinny one where that was measured to be faster (docs/results/h200-kernels.md)."""

    splits = 1
    """Terms of a skinny product."""
    most_tokens = FEW_TOKENS
    """Of a skinny product that has the chip to itself."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, in_features] -> [num_tokens, out_features], or partial sums of it if its reader takes them."""
        if not self._is_skinny(x, self.most_tokens):
            return F.linear(x, self.weight, self.bias)
        sums = kernels.skinny_product(x, self.weight, self.splits)
        return sums if self.splits > 1 else sums[0]

    def room_for_sums(self, x: Tensor, extra: int) -> Tensor:
        """[terms + extra, num_tokens, out_features]: for `fill_sums`, and `extra` terms that others will add."""
        splits = self.splits if self._is_skinny(x, FEW_TOKENS) else 1
        dtype = torch.float32 if splits > 1 else x.dtype
        return x.new_empty(splits + extra, len(x), len(self.weight), dtype=dtype)

    def fill_sums(self, sums: Tensor, x: Tensor) -> None:
        """The first terms, whose sum is self(x)."""
        if self._is_skinny(x, FEW_TOKENS):
            kernels.skinny_product(x, self.weight, self.splits, out=sums[: self.splits])
        elif self.bias is None:
            torch.mm(x, self.weight.T, out=sums[0])
        else:
            torch.addmm(self.bias, x, self.weight.T, out=sums[0])

    def _is_skinny(self, x: Tensor, most_tokens: int) -> bool:
        is_small = self.bias is None and len(x) <= most_tokens
        return is_small and kernels.can_multiply(len(x), self.weight, self.splits)


class ResidualProduct(DenseProduct):
    """A product whose output goes into `add_rms_norm`. That adds partial sums up, so two programs can share an output:
    enough of them to fill the chip."""

    splits = 2
    most_tokens = kernels.SKINNY_MAX_TOKENS
