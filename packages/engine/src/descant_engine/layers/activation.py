from torch import Tensor, nn

from descant_engine.layers.ops import current_ops


class SiluMul(nn.Module):
    """SwiGLU's gate, arXiv 2002.05202: [num_tokens, 2 * n] -> silu(left half) * right half."""

    def __init__(self) -> None:
        super().__init__()
        self._ops = current_ops()

    def forward(self, gate_up: Tensor) -> Tensor:
        return self._ops.silu_mul(gate_up)
