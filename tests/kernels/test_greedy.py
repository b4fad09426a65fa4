import pytest
import torch

from descant_kernels import greedy, reference


@pytest.mark.parametrize(("rows", "vocab"), [(1, 7), (3, 4096), (2, 9000), (0, 50)])
def test_equals_argmax(device: str, dtype: torch.dtype, rows: int, vocab: int) -> None:
    logits = torch.randn(rows, vocab + 5, dtype=dtype, device=device)[:, :vocab]
    assert torch.equal(greedy(logits), reference.greedy(logits))


def test_the_lowest_index_wins_among_equals(device: str) -> None:
    logits = torch.zeros(2, 10000, device=device)
    logits[0, [8200, 4100, 4099]] = 1.0
    assert greedy(logits).tolist() == [4099, 0]


def test_a_row_of_minus_infinity_stays_inside_the_vocabulary(device: str) -> None:
    assert greedy(torch.full((1, 5000), float("-inf"), device=device)).item() == 0
