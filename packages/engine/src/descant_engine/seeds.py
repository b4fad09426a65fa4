"""Seeds that follow from others: SplitMix64 (Steele et al., OOPSLA 2014) of (seed, number). Neighbouring numbers give
unrelated results."""

import numpy as np
import numpy.typing as npt

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MASK_64 = (1 << 64) - 1

Words = npt.NDArray[np.uint64]


def mix_seeds(seeds: Words, numbers: Words) -> Words:
    """[n] and [n] -> [n], every bit as good as random."""
    # Arrays wrap around without a warning.
    z = seeds + (numbers + np.uint64(1)) * np.uint64(GOLDEN_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = z ^ (z >> np.uint64(31))
    return mixed


def sample_seed(seed: int, index: int) -> int:
    """The seed of a request's sample `index`, in [0, 2^63). The first sample is what the request alone would draw."""
    if index == 0:
        return seed
    words = np.array([seed & MASK_64], dtype=np.uint64), np.array([index], dtype=np.uint64)
    return int(mix_seeds(*words)[0]) >> 1
