"""What the user asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

MAX_DRAFT_TOKENS = 64
MAX_DRAFT_TOKENS_ON_CPU = 15
"""More than so many, and the token before them, are computed as a prompt is there: not with the bits that they would
get one by one."""
DEFAULT_TOKENS_OF_METHOD = {"ngram": 15, "draft_model": 5}
MAX_MATCH = 64


class SpeculativeMethod(StrEnum):
    """vLLM's names."""

    NGRAM = "ngram"
    """What followed the last few tokens when they stood in the prompt or the output before."""
    DRAFT_MODEL = "draft_model"
    """A smaller model of the same vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeConfig:
    """How tokens are guessed. Field names are vLLM's.

    Raises:
        ValueError: fields that contradict each other, or a value outside its range; names field and value.
    """

    method: SpeculativeMethod
    model: str | None = None
    """The draft model: what `EngineConfig.model` takes."""
    num_speculative_tokens: int | None = None
    """Most tokens guessed at once; how many it is goes by what pays. None is 15 of n-grams, 5 of a model. On the CPU
    it is never more than 15."""
    adaptive: bool = True
    """False guesses as many tokens as it can wherever it can, paying or not."""
    prompt_lookup_min: int = 2
    """So many tokens must have stood before in this order, for what followed them to be a guess."""
    prompt_lookup_max: int = 16
    """Of several such places the one where most tokens agree is taken; more than so many are not compared."""

    def __post_init__(self) -> None:
        if (self.method == SpeculativeMethod.DRAFT_MODEL) != (self.model is not None):
            raise ValueError(f"method {self.method.value!r} and draft model {self.model!r} do not go together")
        if not 1 <= self.max_tokens <= MAX_DRAFT_TOKENS:
            raise ValueError(f"num_speculative_tokens must be in [1, {MAX_DRAFT_TOKENS}]; got {self.max_tokens}")
        if not 1 <= self.prompt_lookup_min <= self.prompt_lookup_max <= MAX_MATCH:
            raise ValueError(
                f"prompt_lookup_min and prompt_lookup_max must be in [1, {MAX_MATCH}], the first not above the second; "
                f"got {self.prompt_lookup_min} and {self.prompt_lookup_max}"
            )

    @property
    def max_tokens(self) -> int:
        given = self.num_speculative_tokens
        return DEFAULT_TOKENS_OF_METHOD[self.method] if given is None else given


def read_speculative_config(given: Mapping[str, object]) -> SpeculativeConfig:
    """From what vLLM takes: a mapping by its names. A model without a method is a draft model.

    Raises:
        ValueError: an option that is not here, or a value that it cannot have; names it.
    """
    import msgspec  # here, because measurements run where it is not installed

    known = [field.name for field in fields(SpeculativeConfig)]
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(f"speculation has no option {unknown[0]!r} here; it has {', '.join(known)}")
    method = given.get("method") or (SpeculativeMethod.DRAFT_MODEL if given.get("model") else None)
    if method not in list(SpeculativeMethod):
        supported = ", ".join(repr(method.value) for method in SpeculativeMethod)
        raise ValueError(f"speculative method {method!r} is not supported; supported are {supported}")
    try:
        return msgspec.convert({**given, "method": method}, SpeculativeConfig)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
