"""Linear layers that hold several of the checkpoint's matrices as one product, and know which rows are whose."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from descant_engine.adapters.manifest import TargetModule
from descant_engine.config import ModelShape
from descant_engine.layers.current_ops import current_ops
from descant_engine.layers.ops import Product


class Linear(nn.Module):
    """y = x @ weight.T + bias for one or more matrices side by side.

    `shards` gives each matrix's name in the checkpoint, beside this layer's own, and its number of output features.
    """

    def __init__(self, in_features: int, shards: dict[str, int], *, bias: bool = False) -> None:
        super().__init__()
        self.in_features = in_features
        self.shards = shards
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(sum(shards.values()), in_features))
        self.bias = nn.Parameter(torch.empty(sum(shards.values()))) if bias else None
        self.ops = current_ops()
        self._product: Product | None = None

    @property
    def targets(self) -> tuple[TargetModule, ...]:
        """The modules, as adapters name them; in the order of the output's columns."""
        return tuple(TargetModule[name.upper()] for name in self.shards)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.shards.values())

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name beside this layer's, the rows to fill), for every tensor that a checkpoint has for this layer."""
        for kind in ("weight", "bias"):
            parameter = getattr(self, kind)
            if parameter is not None:
                for name, rows in zip(self.shards, parameter.data.split(list(self.widths)), strict=True):
                    yield f"{name}.{kind}", rows

    def finish_loading(self) -> None:
        """Hands the loaded weight to the device's product, which may keep it in a layout of its own."""
        assert self.weight is not None
        self._product = self.prepare(self.weight.data, None if self.bias is None else self.bias.data)
        self.weight = None

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Product:
        return self.ops.product(weight, bias)

    @property
    def product(self) -> Product:
        assert self._product is not None, "finish_loading comes before the first forward pass"
        return self._product

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, in_features] -> [num_tokens, sum of shards]"""
        return self.product(x)


class ResidualLinear(Linear):
    """Its output is added to the residual stream by the norm that follows, and used for nothing else."""

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Product:
        return self.ops.residual_product(weight, bias)


class QkvLinear(Linear):
    def __init__(self, shape: ModelShape) -> None:
        kv_width = shape.num_kv_heads * shape.head_dim
        shards = {"q_proj": shape.num_q_heads * shape.head_dim, "k_proj": kv_width, "v_proj": kv_width}
        super().__init__(shape.hidden_size, shards, bias=shape.attention_bias)


class GateUpLinear(Linear):
    """With SwiGLU's activation, arXiv 2002.05202: silu(gate) * up."""

    def __init__(self, shape: ModelShape) -> None:
        shards = {"gate_proj": shape.intermediate_size, "up_proj": shape.intermediate_size}
        super().__init__(shape.hidden_size, shards, bias=shape.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, in_features] -> [num_tokens, intermediate_size]"""
        return self.ops.silu_mul(self.product(x))
