"""Products with a layer's weight on a GPU: alone, or as terms that a later kernel adds up."""

import torch
from torch import Tensor
from torch.nn import functional as F

import descant_kernels as kernels

RESIDUAL_SPLITS = 2
"""Partial sums of a skinny product that a norm adds up: enough programs to fill the chip."""


class DenseProduct:
    """By cuBLAS."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, in_features] -> [num_tokens, out_features], or partial sums of it if its reader takes them."""
        return F.linear(x, self.weight, self.bias)

    def room_for_sums(self, x: Tensor, extra: int) -> Tensor:
        """[terms + extra, num_tokens, out_features]: for `fill_sums`, and `extra` terms that others will add."""
        return x.new_empty(1 + extra, len(x), len(self.weight))

    def fill_sums(self, sums: Tensor, x: Tensor) -> None:
        """The first terms, whose sum is self(x)."""
        if self.bias is None:
            torch.mm(x, self.weight.T, out=sums[0])
        else:
            torch.addmm(self.bias, x, self.weight.T, out=sums[0])


class ResidualProduct(DenseProduct):
    """A product whose output goes into `add_rms_norm`, which adds partial sums up: with few tokens, a skinny one."""

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.skinny_product(x, self.weight, RESIDUAL_SPLITS) if self._is_skinny(x) else super().__call__(x)

    def room_for_sums(self, x: Tensor, extra: int) -> Tensor:
        if not self._is_skinny(x):
            return super().room_for_sums(x, extra)
        return x.new_empty(RESIDUAL_SPLITS + extra, len(x), len(self.weight), dtype=torch.float32)

    def fill_sums(self, sums: Tensor, x: Tensor) -> None:
        if self._is_skinny(x):
            kernels.skinny_product(x, self.weight, RESIDUAL_SPLITS, out=sums[:RESIDUAL_SPLITS])
        else:
            super().fill_sums(sums, x)

    def _is_skinny(self, x: Tensor) -> bool:
        return self.bias is None and kernels.can_multiply(len(x), self.weight, RESIDUAL_SPLITS)
