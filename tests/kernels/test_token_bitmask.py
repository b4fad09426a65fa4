import pytest
import torch

from descant_kernels import apply_token_bitmask, reference


def random_words(num_rows: int, vocab: int, device: str) -> torch.Tensor:
    words = torch.randint(-(2**31), 2**31 - 1, (num_rows, -(-vocab // 32)), device=device)
    return words.to(torch.int32)


@pytest.mark.parametrize(
    ("num_rows", "masked", "vocab"), [(1, [0], 7), (4, [3, 1], 1024), (3, [0, 2], 2999), (2, [], 64)]
)
def test_equals_its_reference(device: str, dtype: torch.dtype, num_rows: int, masked: list[int], vocab: int) -> None:
    logits = torch.randn(num_rows, vocab, dtype=dtype, device=device)
    expected = logits.clone()
    rows = torch.tensor(masked, dtype=torch.int64, device=device)
    words = random_words(len(masked), vocab, device)
    reference.apply_token_bitmask(expected, rows, words)
    apply_token_bitmask(logits, rows, words)
    assert torch.equal(logits, expected)
    assert not masked or (logits == -torch.inf).any() or vocab < 32


def test_leaves_what_lies_beside_the_logits(device: str) -> None:
    wide = torch.zeros(2, 100, device=device)
    apply_token_bitmask(
        wide[:, :40], torch.tensor([1], device=device), torch.zeros(1, 2, dtype=torch.int32, device=device)
    )
    assert (wide[1, :40] == -torch.inf).all()
    assert (wide[1, 40:] == 0).all()
    assert (wide[0] == 0).all()


def test_words_of_the_wrong_shape_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match="for 40 tokens"):
        apply_token_bitmask(
            torch.zeros(2, 40, device=device), torch.tensor([0], device=device), torch.zeros(1, 1, dtype=torch.int32)
        )
