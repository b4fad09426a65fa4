from torch import Tensor, nn

from descant_engine.layers.current_ops import current_ops
from descant_engine.layers.rotary import Rotary


class Attention(nn.Module):
    """Causal attention of one layer over its part of the block pool. Which tokens belong together, and where their
    keys and values lie, is this step's affair (`current_step`), not the model's.
    """

    def __init__(self, layer: int, head_dim: int, rotary: Rotary) -> None:
        super().__init__()
        self._layer = layer
        self._rotary = rotary
        self._scale = head_dim**-0.5
        self._ops = current_ops()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """q [T, q heads, d], k and v [T, KV heads, d] at positions [T] -> [T, q heads * d]. Turns q and k, and writes k
        and v to the KV cache."""
        return self._ops.rotary_attention(self._layer, q, k, v, positions, self._rotary.cos_sin, self._scale)
