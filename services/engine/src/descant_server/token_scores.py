"""Log-probabilities from the engine's token ids to the wire's texts and bytes."""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from descant_engine.outputs import ScoredToken
from descant_engine.request import TokenLogprobs
from descant_engine.text.tokenizer import Tokenizer
from descant_wire.logprobs import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)


@dataclass(frozen=True, slots=True)
class TokenNames:
    """How tokens are written in an answer."""

    tokenizer: Tokenizer
    as_ids: bool = False
    """As "token_id:123", which is never ambiguous."""

    def text(self, token_id: int) -> str:
        """With U+FFFD for what is no character by itself; its bytes stand beside it."""
        return f"token_id:{token_id}" if self.as_ids else self.tokenizer.token_text(token_id)

    def key(self, token_id: int) -> str:
        """One that tells such tokens apart: their bytes are part of it, as in OpenAI's completions."""
        text = self.text(token_id)
        if "\ufffd" not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes(token_id))

    def bytes(self, token_id: int) -> list[int]:
        return list(self.tokenizer.token_bytes(token_id, skip_special_tokens=False))


def chat_logprobs(tokens: Iterable[ScoredToken], names: TokenNames) -> ChatLogprobs:
    return ChatLogprobs(content=[_chat_token(token.logprobs, names) for token in tokens])


def _chat_token(token: TokenLogprobs, names: TokenNames) -> TokenLogprob:
    return TokenLogprob(
        token=names.text(token.token_id),
        logprob=token.logprob,
        bytes=names.bytes(token.token_id),
        top_logprobs=[
            TopLogprob(token=names.text(token_id), logprob=logprob, bytes=names.bytes(token_id))
            for token_id, logprob in token.top
        ],
    )


def completion_logprobs(tokens: Iterable[ScoredToken], names: TokenNames, first_offset: int) -> CompletionLogprobs:
    """`first_offset`: characters of the choice's text before the output's."""
    tokens = list(tokens)
    return CompletionLogprobs(
        tokens=[names.key(token.logprobs.token_id) for token in tokens],
        token_logprobs=[token.logprobs.logprob for token in tokens],
        top_logprobs=[_top_of(token.logprobs, names) for token in tokens],
        text_offset=[first_offset + token.text_offset for token in tokens],
    )


def echoed_logprobs(token_ids: Sequence[int], scores: Sequence[TokenLogprobs], names: TokenNames) -> CompletionLogprobs:
    """Of a prompt's `token_ids`: `scores` has one for each but the first."""
    return CompletionLogprobs(
        tokens=[names.key(token_id) for token_id in token_ids],
        token_logprobs=[None, *(score.logprob for score in scores)],
        top_logprobs=[None, *(_top_of(score, names) for score in scores)],
        text_offset=_offsets(token_ids, names.tokenizer),
    )


def prompt_logprobs(scores: Iterable[TokenLogprobs], names: TokenNames) -> PromptLogprobs:
    return [None, *(_prompt_token(score, names) for score in scores)]


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
        text_offset=first.text_offset + second.text_offset,
    )


def _top_of(token: TokenLogprobs, names: TokenNames) -> dict[str, float]:
    """The likeliest ones and, wherever it stands, the token itself."""
    return {names.key(token_id): logprob for token_id, logprob in (*token.top, (token.token_id, token.logprob))}


def _prompt_token(token: TokenLogprobs, names: TokenNames) -> dict[str, PromptLogprob]:
    ranked = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(token.top, start=1)]
    return {
        str(token_id): PromptLogprob(logprob=logprob, rank=rank, decoded_token=names.text(token_id))
        for token_id, logprob, rank in (*ranked, (token.token_id, token.logprob, token.rank))
    }


def _offsets(token_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Characters that are complete before each token, in the text of all of them; special tokens have none."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    to_strip = tokenizer.strips_leading_spaces
    offsets, length = [], 0
    for token_id in token_ids:
        offsets.append(length)
        text = decoder.decode(tokenizer.token_bytes(token_id))
        if to_strip and text:
            text = text.removeprefix(" ")
            to_strip = 0
        length += len(text)
    return offsets
