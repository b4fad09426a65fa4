"""The model's own tokenizer: text to token ids, and the exact bytes that each token id stands for.

Encoding goes to the `tokenizers` library by its batch call, which releases the interpreter lock: a thread that encodes
a long prompt does not hold up the event loop. Nothing here changes after loading, so any number of threads may share a
Tokenizer.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from descant_engine.checkpoint.gguf_cache import tokenizer_folder
from descant_engine.text.token_bytes import TokenBytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names, of transformers 4 and 5, for a tokenizer that is its tokenizer.json and nothing else."""


class TokenizerError(ValueError):
    """The model's tokenizer cannot be loaded; the message says why and what would help."""


class TextTooLong(ValueError):
    """A text that holds more tokens than allowed, whatever they turn out to be: it was not encoded."""

    def __init__(self, min_tokens: int) -> None:
        super().__init__(f"the text holds at least {min_tokens} tokens")
        self.min_tokens = min_tokens


class TextNotUnicode(ValueError):
    """A str that is no text, as JSON's \\ud800 gives."""


class Tokenizer:
    def __init__(self, pretrained: "PreTrainedTokenizerFast") -> None:
        self.pretrained = pretrained
        self._backend = pretrained.backend_tokenizer
        # Some tokenizer files carry the truncation of their training run.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._bytes = TokenBytes.of(self._backend)

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """From a folder, a .gguf file or a hub id.

        Raises:
            TokenizerError: nothing there, or a kind of tokenizer whose tokens have no bytes of their own.
        """
        file = Path(path)
        if file.suffix == ".gguf" and not file.is_file():
            raise TokenizerError(f"there is no file {path!r}")
        try:
            pretrained = _read(tokenizer_folder(file) if file.suffix == ".gguf" else file, path)
        except Exception as error:  # transformers lets through whatever the files provoke
            raise TokenizerError(
                f"no tokenizer at {path!r}, which should be a folder, a .gguf file or a hub id: {_first_line(error)}"
            ) from error
        if not getattr(pretrained, "is_fast", False):
            raise TokenizerError(f"{path!r} has no tokenizer.json; {type(pretrained).__name__} is not supported")
        try:
            return cls(pretrained)
        except ValueError as error:
            raise TokenizerError(f"cannot use the tokenizer of {path!r}: {error}") from error

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return len(self._bytes.of_token)

    @property
    def can_write(self) -> bool:
        """Whether tokens in a row are a text, to the byte."""
        return self._bytes.are_exact

    @property
    def strips_leading_spaces(self) -> int:
        """How many spaces at the start of a text are the tokenizer's own and not the text's."""
        return self._bytes.strips_leading_spaces

    def encode(self, text: str, *, add_special_tokens: bool, max_tokens: int | None = None) -> list[int]:
        """The token ids of `text`; with `add_special_tokens`, what the model wants at a text's start is put there.

        Raises:
            TextTooLong: so many characters that more than `max_tokens` tokens are certain; nothing was encoded.
            TextNotUnicode: a lone surrogate.
        """
        if max_tokens is not None:
            self.check_length(len(text), max_tokens)
        try:
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise TextNotUnicode("the text holds half of a surrogate pair, which is no Unicode character") from error
        ids: list[int] = encoding.ids
        return ids

    def encode_start(self, text: str, num_tokens: int, *, add_special_tokens: bool) -> list[int]:
        """The first `num_tokens` token ids; special tokens around a text stay, whatever is cut. Raises as `encode`."""
        encoding = self._parts(text)[0]
        num_special = self._backend.num_special_tokens_to_add(False) if add_special_tokens else 0
        encoding.truncate(max(num_tokens - num_special, 0))
        if add_special_tokens:
            encoding = self._backend.post_process(encoding)
        ids: list[int] = encoding.ids
        return ids

    def encode_pair(self, first: str, second: str, *, keep_first: int | None = None) -> tuple[list[int], int]:
        """Both texts with special tokens around them, and how many tokens are the first's. The second is cut where
        both together have more than `keep_first`. Raises as `encode`."""
        own, other = self._parts(first, second)
        if keep_first is not None:
            room = keep_first - self._backend.num_special_tokens_to_add(True) - len(own)
            other.truncate(max(room, 0))
        encoding = self._backend.post_process(own, other)
        return encoding.ids, encoding.type_ids.count(0)

    def _parts(self, *texts: str) -> list[Any]:
        try:
            return list(self._backend.encode_batch(list(texts), add_special_tokens=False))
        except TypeError as error:
            raise TextNotUnicode("the text holds half of a surrogate pair, which is no Unicode character") from error

    def check_length(self, num_characters: int, max_tokens: int) -> None:
        """Raises TextTooLong if so many characters are certain to be more than `max_tokens` tokens."""
        min_tokens = -(-num_characters // self._bytes.max_characters)
        if min_tokens > max_tokens:
            raise TextTooLong(min_tokens)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of `token_ids` from a text's start; bytes that are no UTF-8 become U+FFFD."""
        data = b"".join(self.token_bytes(token, skip_special_tokens=skip_special_tokens) for token in token_ids)
        for _ in range(self.strips_leading_spaces):
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = True) -> bytes:
        """The bytes that one token adds to a text; none for a special token, or an id that no token has."""
        table = self._bytes.of_visible_token if skip_special_tokens else self._bytes.of_token
        return table[token_id] if 0 <= token_id < len(table) else b""

    @property
    def chat_template(self) -> str | None:
        """All of them together, where there are several."""
        template = self.pretrained.chat_template
        return "\n".join(template.values()) if isinstance(template, dict) else template

    @property
    def visible_tokens(self) -> tuple[bytes, ...]:
        """By id, the bytes that each token adds to a text; empty for special tokens."""
        return self._bytes.of_visible_token

    def is_special(self, token_id: int) -> bool:
        return token_id in self._bytes.special_token_ids

    def special_token_id(self, text: str) -> int | None:
        """Of the special token that is written so; None if none is."""
        token_id = self.pretrained.convert_tokens_to_ids(text) if text else None
        is_it = isinstance(token_id, int) and self.is_special(token_id) and self.token_text(token_id) == text
        return token_id if is_it else None

    def token_text(self, token_id: int) -> str:
        """One token alone, for people to read."""
        return self.token_bytes(token_id, skip_special_tokens=False).decode("utf-8", errors="replace")


def _read(folder: Path, hub_id: str) -> Any:
    """transformers' tokenizer of any class. AutoTokenizer takes seconds to import, since it brings torch: late, and not
    at all where the folder says that its tokenizer.json is to be taken as it is."""
    if folder.is_dir() and _is_plain(folder):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder if folder.is_dir() else hub_id)


def _is_plain(folder: Path) -> bool:
    config, tokenizer = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if not (config.is_file() and tokenizer.is_file()):
        return False
    return json.loads(config.read_text()).get("tokenizer_class") in PLAIN_CLASSES


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
