"""Token ids to text as they arrive: whole characters only, and nothing that follows a stop string."""

import codecs
from collections.abc import Sequence

from descant_engine.sampling_params import SamplingParams
from descant_engine.text.stop_strings import StopStrings
from descant_engine.text.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one output. Joined, what `feed` and `finish` return is the decoded output up to the first stop
    string, and with it if the parameters say so. Each token costs its own length; no token is decoded twice.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, *, continues_text: bool) -> None:
        """`continues_text`: the output goes on where the prompt's text ended; otherwise it is a text of its own, and
        the space that some tokenizers put before a text's first word is not part of it."""
        self.num_tokens = 0
        """Tokens taken; when a stop string ended the text, up to and with the one that completed it."""
        self._num_characters = 0
        """Of the text that the tokens taken have completed, shown or not."""
        self.stop_string: str | None = None
        self._tokenizer = tokenizer
        self._utf8 = _Utf8Decoder(errors="replace")
        self._stop_strings = StopStrings(params.stop)
        self._min_tokens = params.min_tokens
        self._shows_stop_string = params.include_stop_str_in_output
        self._skips_special_tokens = params.skip_special_tokens
        self._spaces_to_strip = 0 if continues_text else tokenizer.strips_leading_spaces

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens make certain. Tokens after a stop string are not taken."""
        shown = []
        for token_id in token_ids:
            if self.stop_string is not None:
                break
            self.num_tokens += 1
            shown.append(self._show(self._utf8.decode(self._visible_bytes(token_id))))
        return "".join(shown)

    def offset_of(self, token_id: int) -> int:
        """Where the text of this token, which comes next, will begin: characters of the whole text before it. Tokens
        that complete a character together begin where it does."""
        begun, _ = self._utf8.getstate()
        following = self._tokenizer.token_bytes(token_id, skip_special_tokens=self._skips_special_tokens)
        if begun and following and following[0] & 0xC0 != 0x80:
            # What was begun stays incomplete, and is replaced.
            return self._num_characters + len(begun.decode("utf-8", errors="replace"))
        return self._num_characters

    def finish(self) -> str:
        """The text held back until now; a character cut short becomes U+FFFD. Call it once, after the last token."""
        if self.stop_string is not None:
            return ""
        shown = self._show(self._utf8.decode(b"", final=True))
        return shown + self._stop_strings.flush()

    def _show(self, text: str) -> str:
        self._num_characters += len(text)
        # `num_tokens` counts the current token: the first `min_tokens` are exempt.
        if not text or self.num_tokens <= self._min_tokens:
            return text
        text, self.stop_string = self._stop_strings.scan(text)
        if self.stop_string is not None and self._shows_stop_string:
            return text + self.stop_string
        return text

    def _visible_bytes(self, token_id: int) -> bytes:
        data = self._tokenizer.token_bytes(token_id, skip_special_tokens=self._skips_special_tokens)
        while self._spaces_to_strip and data:
            if not data.startswith(b" "):
                self._spaces_to_strip = 0
                break
            data = data[1:]
            self._spaces_to_strip -= 1
        return data
