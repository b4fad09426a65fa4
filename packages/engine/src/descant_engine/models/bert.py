"""BERT (arXiv 1810.04805), with or without a cross-encoder's head. Modules are named as checkpoints name them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from descant_engine.config import EncoderShape, ModelShape
from descant_engine.layers.embedding import Embedding
from descant_engine.layers.linear import Linear
from descant_engine.layers.norm import LayerNorm
from descant_engine.layers.sequences import Sequences

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
UNUSED = ("pooler.", "cls.", "classifier.")
"""Heads of other tasks."""


class BertEmbeddings(nn.Module):
    def __init__(self, shape: ModelShape, encoder: EncoderShape) -> None:
        super().__init__()
        self.word_embeddings = Embedding(shape.vocab_size, shape.hidden_size)
        self.position_embeddings = Embedding(shape.max_position, shape.hidden_size)
        self.token_type_embeddings = Embedding(encoder.type_vocab_size, shape.hidden_size)
        self.LayerNorm = LayerNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor, token_types: Tensor) -> Tensor:
        hidden = self.word_embeddings(input_ids)
        hidden += self.token_type_embeddings(token_types)
        hidden += self.position_embeddings(positions)
        normed: Tensor = self.LayerNorm(hidden)
        return normed


class BertOutput(nn.Module):
    """A product that goes back into the residual stream, and the norm after it."""

    def __init__(self, in_features: int, shape: ModelShape) -> None:
        super().__init__()
        self.dense = Linear(in_features, {"dense": shape.hidden_size}, bias=True)
        self.LayerNorm = LayerNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dense(x) + residual)
        return normed


class BertSelfAttention(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self._heads = (3, shape.num_q_heads, shape.head_dim)
        self.qkv = Linear(shape.hidden_size, dict.fromkeys(("query", "key", "value"), shape.hidden_size), bias=True)

    def forward(self, hidden: Tensor, sequences: Sequences) -> Tensor:
        return sequences.attend(self.qkv(hidden).unflatten(-1, self._heads))


class BertAttention(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.self = BertSelfAttention(shape)
        self.output = BertOutput(shape.hidden_size, shape)

    def forward(self, hidden: Tensor, sequences: Sequences) -> Tensor:
        attended: Tensor = self.output(self.self(hidden, sequences), hidden)
        return attended


class BertIntermediate(nn.Module):
    def __init__(self, shape: ModelShape, encoder: EncoderShape) -> None:
        super().__init__()
        self.dense = Linear(shape.hidden_size, {"dense": shape.intermediate_size}, bias=True)
        self._activation = ACTIVATIONS[encoder.activation]

    def forward(self, hidden: Tensor) -> Tensor:
        return self._activation(self.dense(hidden))


class BertLayer(nn.Module):
    def __init__(self, shape: ModelShape, encoder: EncoderShape) -> None:
        super().__init__()
        self.attention = BertAttention(shape)
        self.intermediate = BertIntermediate(shape, encoder)
        self.output = BertOutput(shape.intermediate_size, shape)

    def forward(self, hidden: Tensor, sequences: Sequences) -> Tensor:
        hidden = self.attention(hidden, sequences)
        output: Tensor = self.output(self.intermediate(hidden), hidden)
        return output


class BertLayers(nn.Module):
    def __init__(self, shape: ModelShape, encoder: EncoderShape) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(shape, encoder) for _ in range(shape.num_layers))

    def forward(self, hidden: Tensor, sequences: Sequences) -> Tensor:
        for layer in self.layer:
            hidden = layer(hidden, sequences)
        return hidden


class BertModel(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        assert shape.encoder is not None
        self.embeddings = BertEmbeddings(shape, shape.encoder)
        self.encoder = BertLayers(shape, shape.encoder)

    def forward(self, input_ids: Tensor, positions: Tensor, token_types: Tensor, sequences: Sequences) -> Tensor:
        """Three times [num_tokens] -> [num_tokens, hidden_size]: `sequences` one after another."""
        hidden: Tensor = self.encoder(self.embeddings(input_ids, positions, token_types), sequences)
        return hidden

    def head(self, pooled: Tensor) -> Tensor:
        """What is made of pooled hidden states [n, hidden_size] float32: here nothing."""
        return pooled

    @staticmethod
    def place_of(name: str) -> str | None:
        """Checkpoints of other tasks have a prefix and heads; the oldest have TensorFlow's names for norms."""
        name = _modern(name.removeprefix("bert."))
        return None if name.startswith(UNUSED) or name == "embeddings.position_ids" else name


class BertPooler(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.dense = Linear(shape.hidden_size, {"dense": shape.hidden_size}, bias=True)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))


class BertForSequenceClassification(BertModel):
    """A cross-encoder: one number for a pair of texts, from the hidden state of the first token."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__(shape)
        assert shape.encoder is not None
        self.pooler = BertPooler(shape)
        self.scores = Linear(shape.hidden_size, {"classifier": 1}, bias=True)
        self._has_sigmoid = shape.encoder.has_sigmoid

    def head(self, pooled: Tensor) -> Tensor:
        """[n, hidden_size] -> [n, 1] float32"""
        scores: Tensor = self.scores(self.pooler(pooled.to(self.embeddings.LayerNorm.weight.dtype))).float()
        return scores.sigmoid() if self._has_sigmoid else scores

    @staticmethod
    def place_of(name: str) -> str | None:
        name = _modern(name.removeprefix("bert."))
        return None if name == "embeddings.position_ids" else name


def _modern(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
