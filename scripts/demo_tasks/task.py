"""What a demo task is: a generator of examples and a rule that scores an answer."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class Example:
    prompt: str
    """The whole user message."""
    answer: str


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    make: Callable[[Random, Split], Example]
    """Draws one example. Products, tables and names of the two splits are disjoint."""
    score: Callable[[Example, str], dict[str, bool]]
    """Measure -> whether this answer passes; the same measures for every example of a task."""
    instruction: str
    """Tells a model without the adapter what to do, so that the base model gets a fair chance."""
