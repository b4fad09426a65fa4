import torch
from torch import Tensor, nn
from torch.nn import functional as F

from descant_engine.layers.current_ops import current_ops
from descant_engine.layers.ops import Product


class Embedding(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, token_ids: Tensor) -> Tensor:
        """[num_tokens] -> [num_tokens, hidden_size]"""
        return F.embedding(token_ids, self.weight)


class LmHead(nn.Module):
    """Hidden states to logits, with a matrix of its own or the embedding's."""

    def __init__(self, vocab_size: int, hidden_size: int, tied_to: Embedding | None) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = None
        if tied_to is None:
            self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self._embedding = [tied_to] if tied_to is not None else []  # in a list: not a submodule of this one
        self._ops = current_ops()
        self._product: Product | None = None

    def finish_loading(self) -> None:
        weight = self.weight if self.weight is not None else self._embedding[0].weight
        self._product = self._ops.product(weight.data, None)
        self.weight = None

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, hidden_size] -> [n, vocab_size]"""
        assert self._product is not None, "finish_loading comes before the first forward pass"
        return self._product(hidden)
