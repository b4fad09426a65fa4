"""What a value outside its range is told."""

import pytest

from descant_engine.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_tokens": 0}, "max_tokens must be in [1, 2147483647]; got 0"),
        ({"seed": 2**63}, "seed must be in [-9223372036854775808, 9223372036854775807]; got 9223372036854775808"),
        ({"top_p": 0.0}, "top_p must be in (0, 1]; got 0.0"),
        ({"temperature": 2.5}, "temperature must be in [0, 2]; got 2.5"),
    ],
)
def test_bounds_are_told_to_the_last_digit(given: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError) as refused:
        SamplingParams(**given)  # type: ignore[arg-type]
    assert str(refused.value) == told
