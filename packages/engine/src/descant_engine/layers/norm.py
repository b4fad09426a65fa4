import torch
from torch import Tensor, nn
from torch.nn import functional as F

from descant_engine.layers.current_ops import current_ops


class RmsNorm(nn.Module):
    """Root mean square norm, arXiv 1910.07467."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self._eps = eps
        self._ops = current_ops()

    def forward(self, x: Tensor) -> Tensor:
        return self._ops.rms_norm(x, self.weight, self._eps)

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual); without a residual, (norm(x), x). Both inputs may be overwritten."""
        if residual is None:
            return self._ops.rms_norm(x, self.weight, self._eps), x
        return self._ops.add_rms_norm(x, residual, self.weight, self._eps)


class LayerNorm(nn.Module):
    """arXiv 1607.06450, with scale and shift."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self._eps)
