"""Adapters on a model's linear layers, attached from outside: neither the model nor the layer knows of them."""

import re

from torch import Tensor, nn

from descant_engine.forward_context import current_step
from descant_engine.layers.linear import GateUpLinear, Linear
from descant_engine.layers.ops import LoraGroup, Sums


class LoraLinear(nn.Module):
    """The base layer's product, plus what each token's own adapter adds (LoRA, arXiv 2106.09685)."""

    def __init__(self, base: Linear, layer: int) -> None:
        super().__init__()
        self.base = base
        self._group = LoraGroup(layer, base.targets, base.widths, base.in_features)
        gated = isinstance(base, GateUpLinear)
        self._adapted = base.ops.lora_gated_product if gated else base.ops.lora_product

    def forward(self, x: Tensor) -> Sums:
        """x [T, in] -> Sums with n = sum of the widths; of gate and up the gated product, [T, n / 2]."""
        if current_step().lora is None:
            output: Sums = self.base(x)
            return output
        return self._adapted(self._group, self.base.product, x)


def wrap_linears(model: nn.Module) -> None:
    """Puts a LoraLinear around every Linear of the model's layers."""
    for name, parent in list(model.named_modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, Linear) and not isinstance(parent, LoraLinear):
                setattr(parent, child_name, LoraLinear(child, _layer_number(name)))


def _layer_number(name: str) -> int:
    found = re.search(r"\blayers\.(\d+)\.", f"{name}.")
    assert found is not None, f"{name} is in no layer of the model"
    return int(found[1])
