import torch
from torch import Tensor, nn

from descant_engine.layers.ops import current_ops


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
