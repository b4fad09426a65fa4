import math

import numpy as np

from descant_engine.seeds import mix_seeds, sample_seed


def test_neighbours_give_unrelated_numbers():
    seeds = np.array([-1, 0, 1, 2**62] * 100, dtype=np.int64).view(np.uint64)
    mixed = mix_seeds(seeds, np.repeat(np.arange(100, dtype=np.uint64), 4))
    assert len(set(mixed.tolist())) == 400
    assert math.isclose(mixed.astype(float).mean() / 2**64, 0.5, abs_tol=0.05)


def test_the_published_stream_of_seed_0():
    """The first numbers of SplitMix64's reference implementation."""
    assert mix_seeds(np.zeros(2, np.uint64), np.arange(2, dtype=np.uint64)).tolist() == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
    ]


def test_the_first_sample_is_the_request_itself():
    seeds = [sample_seed(-5, index) for index in range(50)]
    assert seeds[0] == -5
    assert len(set(seeds)) == 50
    assert all(0 <= seed < 2**63 for seed in seeds[1:])
