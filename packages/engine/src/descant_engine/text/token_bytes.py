"""What bytes a token stands for, read once from the tokenizer's decoder.

Two families cover the models we serve. Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2) writes every byte as one of 256
printable characters. SentencePiece BPE (Llama 2, Mistral) writes text as it is with U+2581 for a space, and a byte
outside its vocabulary as the token <0xNN>. In both a text is its tokens' bytes in a row, so it can be decoded as it
arrives, with no look back.

WordPiece (BERT) is for encoders, which write no text: its tokens' bytes are for people to read.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class TokenBytes:
    of_token: tuple[bytes, ...]
    """By token id; empty where no token has the id."""
    of_visible_token: tuple[bytes, ...]
    """The same, with special tokens empty."""
    special_token_ids: frozenset[int]
    max_characters: int
    """The length of the longest token: a text of n times as many characters has at least n tokens. There is no such
    length in WordPiece, where any word may be one unknown token."""
    strips_leading_spaces: int
    are_exact: bool
    """False for WordPiece, which does not keep a text's spaces."""

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> "TokenBytes":
        """Raises ValueError, naming the decoder, if its tokens are not bytes in a row."""
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        special = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        steps = list(_decoder_steps(json.loads(backend.to_str())["decoder"]))
        decode, strips = _decoder(steps)
        of_token = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, token_id in vocabulary.items():
            of_token[token_id] = decode(token)
        return cls(
            of_token=tuple(of_token),
            of_visible_token=tuple(b"" if i in special else data for i, data in enumerate(of_token)),
            special_token_ids=special,
            max_characters=sys.maxsize if _is_word_piece(steps) else max(map(len, vocabulary), default=1),
            strips_leading_spaces=strips,
            are_exact=not _is_word_piece(steps),
        )


def _decoder_steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is None:
        raise ValueError("it has no decoder")
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _decoder_steps(step)
    else:
        yield decoder


def _decoder(steps: list[Mapping[str, Any]]) -> tuple[Callable[[str], bytes], int]:
    """(token -> bytes, spaces stripped at a text's start)."""
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return _byte_level, 0
    if _is_word_piece(steps):
        return partial(_word_piece, steps[0]["prefix"]), 1
    replacements: list[tuple[str, str]] = []
    strips = 0
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replacements.append((old, new))
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                strips += start
            case {"type": "ByteFallback" | "Fuse"}:
                pass
            case _:
                raise ValueError(f"its decoder has a step that is not supported: {dict(step)}")

    def decode(token: str) -> bytes:
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(byte[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode("utf-8", errors="replace")

    return decode, strips


def _is_word_piece(steps: list[Mapping[str, Any]]) -> bool:
    return [step["type"] for step in steps] == ["WordPiece"]


def _word_piece(prefix: str, token: str) -> bytes:
    """`prefix` marks what goes on with a word."""
    text = token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
    return text.encode("utf-8", errors="replace")


def _byte_of_symbol() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_SYMBOL = _byte_of_symbol()


def _byte_level(token: str) -> bytes:
    """A token with a character outside the alphabet is an added one, written as plain text."""
    try:
        return bytes([_BYTE_OF_SYMBOL[symbol] for symbol in token])
    except KeyError:
        return token.encode("utf-8", errors="replace")
