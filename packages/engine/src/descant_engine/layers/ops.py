"""What layers ask of a device: one object per device, bound when a layer is built, so layers have no if on devices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from descant_engine.adapters.manifest import TargetModule

Sums = Tensor
"""[T, n], or partial sums of it: [terms, T, n]. Only what says that it takes Sums may read them."""
Product = Callable[[Tensor], Sums]
"""x [T, in_features] -> x @ weight.T + bias, n = out_features. Where no reader takes Sums, it is whole."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraGroup:
    """A packed linear layer as adapters see it. Compared by identity: one object per layer, for its lifetime."""

    layer: int
    modules: tuple[TargetModule, ...]
    widths: tuple[int, ...]
    """Output columns of each module, side by side."""
    in_features: int


class Ops(Protocol):
    """Shapes: T tokens, d = head_dim, qh / kvh query and KV heads.

    `silu_mul`, the norms and `rotary_attention` add up what they are given.
    """

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        """Prepares weight [out, in] for use; the caller need not keep it."""

    def residual_product(self, weight: Tensor, bias: Tensor | None) -> Product:
        """Like `product`, for outputs that go into `add_rms_norm` and nowhere else."""

    def rms_norm(self, x: Sums, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last dimension (arXiv 1910.07467); the mean is taken in float32."""

    def add_rms_norm(self, x: Sums, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(rms_norm(x + residual), x + residual). Either input may be overwritten. x is what a norm, an embedding or a
        `residual_product` gave."""

    def silu_mul(self, gate_up: Sums) -> Tensor:
        """[T, 2n] -> silu(first half) * second half, [T, n]."""

    def rotary_attention(
        self, layer: int, q: Sums, k: Sums, v: Sums, positions: Tensor, cos_sin: Tensor, scale: float
    ) -> Tensor:
        """Turns q [T, qh, d] and k [T, kvh, d] by their positions [T], writes k and v to the layer's KV cache, attends:
        [T, qh * d]. cos_sin [max_position, d] has cosines, then sines. q and k may be overwritten."""

    def lora_product(self, group: LoraGroup, product: Product, x: Tensor) -> Sums:
        """product(x) [T, sum(widths)] plus each token's adapter on x [T, in]; for steps that have adapters."""

    def lora_gated_product(self, group: LoraGroup, product: Product, x: Tensor) -> Tensor:
        """silu_mul(lora_product(...)), [T, sum(widths) / 2]"""
