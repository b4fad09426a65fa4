"""What a grammar must know of the model's tokens: their bytes, and which of them end an output."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Vocabulary:
    tokens: tuple[bytes, ...]
    """By token id; empty for special tokens, which no grammar allows, and for ids that no token has."""
    size: int
    """Width of the model's logits, which may be more than there are tokens."""
    stop_token_ids: tuple[int, ...]
    """End-of-sequence tokens."""

    @classmethod
    def of_model(cls, tokens: tuple[bytes, ...], size: int, stop_token_ids: tuple[int, ...]) -> "Vocabulary":
        """Cut or filled to the model's size."""
        padded = tokens[:size] + (b"",) * (size - len(tokens))
        return cls(padded, size, stop_token_ids)

    def encode_greedily(self, data: bytes) -> list[int]:
        """Tokens whose bytes are `data`, the longest one first at each place; it ends before a byte without a token.

        Not the way the tokenizer would do it, but the text is the same.
        """
        token_ids = []
        start = 0
        while start < len(data):
            end = min(len(data), start + self._longest)
            while end > start and data[start:end] not in self._id_of:
                end -= 1
            if end == start:
                break
            token_ids.append(self._id_of[data[start:end]])
            start = end
        return token_ids

    def beginnings_of(self, data: bytes) -> list[int]:
        """Tokens whose bytes `data` begins with, the shortest first."""
        beginnings = (data[:end] for end in range(1, len(data) + 1))
        return [self._id_of[beginning] for beginning in beginnings if beginning in self._id_of]

    @cached_property
    def _id_of(self) -> dict[bytes, int]:
        return {data: token_id for token_id, data in enumerate(self.tokens) if data}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._id_of), default=0)
