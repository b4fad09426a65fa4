"""What a client may ask of the sampler. Plain data, checked once, at the border."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from descant_engine.grammar.spec import GrammarSpec
from descant_engine.ranges import MAX_INT32, MAX_INT64, require, require_given

MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 1024
"""Each token of the output is looked up among them, in the loop that serves everybody."""
MAX_LOGPROBS = 20
"""Alternatives a token; OpenAI's limit for chats."""
MAX_SAMPLES = 128
"""Of one prompt."""
MAX_BIASED_TOKENS = 1024
MAX_BIAS = 100.0
MAX_BAD_SEQUENCES = 256
MAX_BAD_SEQUENCE_TOKENS = 64
GREEDY_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen. Defaults are OpenAI's, except that `max_tokens` None means
    "as many as the context allows".

    Raises:
        ValueError: a value outside its range; the message names the field, the value and the range.
    """

    n: int = 1
    """Answers to each prompt, each with a seed of its own; they share the prompt's blocks."""
    best_of: int | None = None
    """So many are generated, and the `n` with the highest mean log-probability are returned; None is `n`."""
    temperature: float = 1.0
    """0 is greedy; the logits are divided by it otherwise."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches it; 1 keeps all."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the likeliest one."""
    seed: int | None = None
    """Makes the request reproducible whatever else shares its batch; None draws a seed at admission."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or output (CTRL, arXiv 1909.05858)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> what is added to its logit; 100 and -100 as good as force and forbid it. Not to be changed."""
    allowed_token_ids: tuple[int, ...] | None = None
    """All others are impossible; None allows all. The end-of-sequence token is one like any other."""
    bad_words: tuple[str, ...] = ()
    """Output never has the tokens of any of these, as the tokenizer writes it at a text's start and after a space."""
    bad_token_sequences: tuple[tuple[int, ...], ...] = ()
    """Token ids that never follow each other so in the output; `bad_words` are added to them."""
    max_tokens: int | None = None
    min_tokens: int = 0
    """End-of-sequence and stop tokens are impossible, stop strings unheeded, before this many tokens."""
    stop: tuple[str, ...] = ()
    """Output ends before the first of these strings; it is not part of the output."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    """The stop string that ended the output, or the token of `stop_token_ids`, is part of its text."""
    skip_special_tokens: bool = True
    """Special tokens are no part of the output's text."""
    logprobs: int | None = None
    """Log-probabilities of each output token and of so many of the likeliest ones at its place; None gives none.

    They are the model's own: before penalties, bias, masks, temperature and truncation.
    """
    prompt_logprobs: int | None = None
    """The same for each token of the prompt but the first. Such a prompt is computed whole, not taken from the prefix
    cache."""
    grammar: GrammarSpec | None = None
    """The output has this form, if it ends by itself. Where nothing may follow any more it ends, whatever min_tokens
    and ignore_eos say."""
    truncate_prompt_tokens: int | None = None
    """Only the last so many tokens of the prompt are taken; None takes all."""

    def __post_init__(self) -> None:
        self._check_samples()
        require("temperature", self.temperature, 0.0, 2.0)
        require("top_p", self.top_p, 0.0, 1.0, above_low=True)
        require("min_p", self.min_p, 0.0, 1.0)
        require("presence_penalty", self.presence_penalty, -2.0, 2.0)
        require("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        require("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above_low=True)
        require("top_k", self.top_k, 0, MAX_INT32)
        require_given("seed", self.seed, -MAX_INT64 - 1, MAX_INT64)
        require_given("max_tokens", self.max_tokens, 1, MAX_INT32)
        require("min_tokens", self.min_tokens, 0, self.max_tokens if self.max_tokens is not None else MAX_INT32)
        require_given("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        require_given("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        require_given("truncate_prompt_tokens", self.truncate_prompt_tokens, 1, MAX_INT32)
        self._check_tokens()
        if len(self.stop) > MAX_STOP_STRINGS or "" in self.stop:
            raise ValueError(f"stop: at most {MAX_STOP_STRINGS} strings, none empty; got {_shortened(self.stop)}")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise ValueError(f"stop_token_ids: at most {MAX_STOP_TOKEN_IDS}; got {len(self.stop_token_ids)}")

    def _check_samples(self) -> None:
        require("n", self.n, 1, MAX_SAMPLES)
        require_given("best_of", self.best_of, self.n, MAX_SAMPLES)

    def _check_tokens(self) -> None:
        if len(self.logit_bias) > MAX_BIASED_TOKENS:
            raise ValueError(f"logit_bias: at most {MAX_BIASED_TOKENS} tokens; got {len(self.logit_bias)}")
        for token_id, bias in self.logit_bias.items():
            if not (isfinite(bias) and abs(bias) <= MAX_BIAS):
                raise ValueError(f"logit_bias: {token_id} has {bias!r}; must be in [{-MAX_BIAS:g}, {MAX_BIAS:g}]")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ValueError("allowed_token_ids: is empty; at least one token must be possible")
        if len(self.bad_words) > MAX_BAD_SEQUENCES or "" in self.bad_words:
            raise ValueError(
                f"bad_words: at most {MAX_BAD_SEQUENCES} strings, none empty; got {_shortened(self.bad_words)}"
            )
        for sequence in self.bad_token_sequences:
            if not 1 <= len(sequence) <= MAX_BAD_SEQUENCE_TOKENS:
                raise ValueError(
                    f"bad_words: each must have 1 to {MAX_BAD_SEQUENCE_TOKENS} tokens; one has {len(sequence)}"
                )

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_EPSILON

    @property
    def num_samples(self) -> int:
        """Outputs to generate for each prompt."""
        return self.n if self.best_of is None else self.best_of


def _shortened(strings: tuple[str, ...]) -> str:
    text = repr([string[:80] for string in strings[: MAX_STOP_STRINGS + 1]])
    return text if len(text) <= 200 else f"{text[:200]}... ({len(strings)} strings)"
