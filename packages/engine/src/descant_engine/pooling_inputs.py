"""What a text, or a pair of texts, is to a model that makes vectors or scores: token ids, as many as it takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from descant_engine.config import ResolvedConfig
from descant_engine.frontend import InvalidPrompt, Text, check_cut_length
from descant_engine.pooling import PoolingParams, PoolingType
from descant_engine.request import NOBODY, EngineRequest, Owner
from descant_engine.sampling_params import SamplingParams
from descant_engine.text.tokenizer import TextTooLong, Tokenizer

NO_TOKENS = SamplingParams(max_tokens=1, temperature=0.0)
"""Of requests for vectors: nothing is sampled."""


class Pair(NamedTuple):
    """Two texts that a cross-encoder reads together."""

    first: str
    second: str


PoolingInput = str | Text | Sequence[int] | Pair


class InputTooLong(ValueError):
    """More tokens than the model takes; the message has both numbers."""

    def __init__(self, num_tokens: int, max_tokens: int, *, at_least: bool = False) -> None:
        super().__init__(
            f"the input has {'at least ' if at_least else ''}{num_tokens} tokens, but this model takes {max_tokens};"
            " shorten it, or let it be cut with truncate_prompt_tokens"
        )


@dataclass(frozen=True, slots=True)
class EncodedInput:
    token_ids: tuple[int, ...]
    num_first_tokens: int | None = None
    """Of a pair."""


class PoolingInputs:
    """No state but the tokenizer: may be used in any thread."""

    def __init__(self, config: ResolvedConfig, tokenizer: Tokenizer) -> None:
        self._config = config
        self._tokenizer = tokenizer

    def encode(self, given: PoolingInput, keep_first: int | None = None) -> EncodedInput:
        """`keep_first`: only so many tokens are taken, those that the model wants around a text among them.

        Raises:
            InputTooLong, TooManyCharacters, InvalidPrompt, TextNotUnicode: the input is at fault.
        """
        limit = self._config.max_model_len
        keep_first = None if keep_first is None else min(keep_first, limit)
        try:
            encoded = self._encode(given, keep_first, limit)
        except TextTooLong as error:
            raise InputTooLong(error.min_tokens, limit, at_least=True) from None
        if len(encoded.token_ids) > limit:
            raise InputTooLong(len(encoded.token_ids), limit)
        self._check(encoded.token_ids)
        return encoded

    def _encode(self, given: PoolingInput, keep_first: int | None, limit: int) -> EncodedInput:
        match given:
            case Pair(first, second):
                # Whichever is cut, and of WordPiece no number of characters is certain to be too many tokens.
                check_cut_length(len(first) + len(second), limit)
                token_ids, num_first_tokens = self._tokenizer.encode_pair(first, second, keep_first=keep_first)
                return EncodedInput(tuple(token_ids), num_first_tokens)
            case str():
                text = Text(given)
            case Text():
                text = given
            case _:
                return EncodedInput(tuple(given[:keep_first]))
        check_cut_length(len(text.text), limit)
        add_special = text.add_special_tokens
        if keep_first is not None:
            return EncodedInput(
                tuple(self._tokenizer.encode_start(text.text, keep_first, add_special_tokens=add_special))
            )
        ids = self._tokenizer.encode(text.text, add_special_tokens=add_special, max_tokens=limit)
        return EncodedInput(tuple(ids))

    def _check(self, token_ids: tuple[int, ...]) -> None:
        if not token_ids:
            raise InvalidPrompt("the input is empty; at least one token is needed")
        vocab_size = self._config.shape.vocab_size
        for token_id in (min(token_ids), max(token_ids)):
            if not 0 <= token_id < vocab_size:
                raise InvalidPrompt(f"token id {token_id} is not in the model's vocabulary of {vocab_size}")

    def request(
        self,
        encoded: EncodedInput,
        *,
        request_id: str,
        dimensions: int | None = None,
        adapter_digest: str | None = None,
        owner: Owner = NOBODY,
    ) -> EngineRequest:
        """Raises InvalidDimensions."""
        assert self._config.pooling is not None
        self._config.pooling.check_dimensions(dimensions, self._config.shape.hidden_size)
        return EngineRequest(
            request_id=request_id,
            prompt_token_ids=encoded.token_ids,
            params=NO_TOKENS,
            pooling=PoolingParams(
                dimensions=dimensions,
                num_first_tokens=encoded.num_first_tokens,
                needs_every_token=self._config.pooling.type is not PoolingType.LAST,
            ),
            adapter_digest=adapter_digest,
            tenant=owner.tenant,
            tenant_salt=owner.tenant_salt,
            priority=owner.priority,
        )
