"""What a model can be asked for, and how it turns a text's tokens into one vector. Plain data; no torch."""

from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    GENERATE = "generate"
    EMBED = "embed"
    """A vector for a text."""
    SCORE = "score"
    """A number for a pair of texts, read together: a cross-encoder."""


class UnsupportedTask(ValueError):
    """This model cannot do it, or was not started for it; the message says what it can do."""

    def __init__(self, task: Task, tasks: tuple[Task, ...]) -> None:
        hint = " (start it with --runner pooling, or with a --pooling-type)" if _could_embed(task, tasks) else ""
        super().__init__(f"this model does not do {task.value!r}{hint}; it does {', '.join(tasks)}")


def _could_embed(task: Task, tasks: tuple[Task, ...]) -> bool:
    return task is Task.EMBED and tasks == (Task.GENERATE,)


class InvalidDimensions(ValueError):
    """Vectors of a length that the model was not trained for; the message says what is possible."""


class PoolingType(StrEnum):
    """Which of a text's last hidden states make its vector."""

    MEAN = "mean"
    LAST = "last"
    CLS = "cls"
    """The first token's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingConfig:
    """The model's way, the same for all its requests."""

    type: PoolingType
    normalize: bool = True
    """Vectors have length 1."""
    max_tokens: int | None = None
    """Of a text, where the model was trained for fewer than its positions allow."""
    dimensions: tuple[int, ...] | None = None
    """Beginnings of a vector that are vectors of their own (Matryoshka, arXiv 2205.13147). None: there are none;
    empty: of any length."""

    def check_dimensions(self, wanted: int | None, hidden_size: int) -> None:
        """Raises InvalidDimensions for vectors that the model was not trained for."""
        if wanted in (None, hidden_size):
            return
        if self.dimensions is None:
            raise InvalidDimensions(
                f"dimensions: {wanted} was asked for, but this model's vectors have {hidden_size} and it was not"
                " trained for shorter ones (Matryoshka)"
            )
        if not 1 <= wanted <= hidden_size:
            raise InvalidDimensions(f"dimensions must be in [1, {hidden_size}]; got {wanted}")
        if self.dimensions and wanted not in self.dimensions:
            possible = ", ".join(map(str, self.dimensions))
            raise InvalidDimensions(f"dimensions: {wanted} is none that this model was trained for: {possible}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """What one request asks for instead of tokens."""

    dimensions: int | None = None
    """Only so many of the vector's first components; None is all."""
    num_first_tokens: int | None = None
    """Of a pair, where its second text begins; None is one text."""
    needs_every_token: bool = True
    """False where the last hidden state is all that counts."""
