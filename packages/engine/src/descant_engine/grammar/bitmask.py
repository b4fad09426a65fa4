"""What grammars allow in one step: host data, made while the forward pass runs, for the rows that sample."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class GrammarBitmask:
    sample_indices: tuple[int, ...]
    """Places, among the step's samples, of the rows with a grammar."""
    words: npt.NDArray[np.int32]
    """[len(sample_indices), ceil(vocab_size / 32)]: bit i % 32 of word i / 32 is set if token i is allowed"""
