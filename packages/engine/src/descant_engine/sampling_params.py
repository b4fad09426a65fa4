"""What a client may ask of the sampler. Plain data, checked once, at the border."""

from dataclasses import dataclass

MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 1024
"""Each token of the output is looked up among them, in the loop that serves everybody."""
GREEDY_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen. Defaults are OpenAI's, except that `max_tokens` None means
    "as many as the context allows".

    Raises:
        ValueError: a value outside its range; the message names the field, the value and the range.
    """

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
    max_tokens: int | None = None
    min_tokens: int = 0
    """End-of-sequence and stop tokens are impossible, stop strings unheeded, before this many tokens."""
    stop: tuple[str, ...] = ()
    """Output ends before the first of these strings; it is not part of the output."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0.0, 2.0)
        _require("top_p", self.top_p, 0.0, 1.0, above_low=True)
        _require("min_p", self.min_p, 0.0, 1.0)
        _require("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _require("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _require("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above_low=True)
        _require("top_k", self.top_k, 0, 2**31 - 1)
        if self.seed is not None:
            _require("seed", self.seed, -(2**63), 2**63 - 1)
        if self.max_tokens is not None:
            _require("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _require("min_tokens", self.min_tokens, 0, self.max_tokens if self.max_tokens is not None else 2**31 - 1)
        if len(self.stop) > MAX_STOP_STRINGS or "" in self.stop:
            raise ValueError(f"stop: at most {MAX_STOP_STRINGS} strings, none empty; got {_shortened(self.stop)}")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise ValueError(f"stop_token_ids: at most {MAX_STOP_TOKEN_IDS}; got {len(self.stop_token_ids)}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_EPSILON


def _require(name: str, value: float, low: float, high: float, *, above_low: bool = False) -> None:
    # NaN fails both comparisons, and so is refused.
    inside = low < value <= high if above_low else low <= value <= high
    if not inside:
        bracket = "(" if above_low else "["
        raise ValueError(f"{name} must be in {bracket}{low:g}, {high:g}]; got {value!r}")


def _shortened(strings: tuple[str, ...]) -> str:
    text = repr([string[:80] for string in strings[: MAX_STOP_STRINGS + 1]])
    return text if len(text) <= 200 else f"{text[:200]}... ({len(strings)} strings)"
