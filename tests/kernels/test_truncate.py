from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from descant_kernels import reference, truncate

Limits = tuple[float, float, int, float]
"""temperature, min_p, top_k, top_p"""
NEUTRAL: Limits = (1.0, 0.0, 0, 1.0)


def kept(function: Callable[..., None], logits: Tensor, limits: list[Limits], rows: list[int]) -> Tensor:
    """[num_rows, vocab] bool"""
    device, truncated = logits.device, logits.clone()
    temperatures, min_p, top_k, top_p = (torch.tensor(column, device=device) for column in zip(*limits, strict=True))
    function(truncated, torch.tensor(rows, device=device), temperatures, min_p, top_k, top_p)
    is_kept = truncated > -torch.inf
    assert torch.equal(truncated[is_kept], logits[is_kept])
    return is_kept


@pytest.mark.parametrize("vocab", [700, 9001])
def test_keeps_what_the_reference_keeps(device: str, vocab: int) -> None:
    limits: list[Limits] = [
        (1.0, 0.0, 1, 1.0),
        (1.0, 0.0, 40, 1.0),
        (0.7, 0.0, 0, 0.9),
        (2.0, 0.0, 0, 0.999),
        (1.5, 0.05, 0, 1.0),
        (0.8, 0.01, 50, 0.95),
        (1.0, 0.0, 2**31 - 1, 1e-6),
        NEUTRAL,
    ]
    logits = torch.randn(len(limits), vocab, device=device) * 3
    mine, theirs = (
        kept(function, logits, limits, [*range(len(limits))]) for function in (truncate, reference.truncate)
    )
    temperatures = torch.tensor([limit[0] for limit in limits], device=device).unsqueeze(1)
    # Sums in float32 may reach top_p a token of next to no mass earlier or later.
    mass = (logits / temperatures).softmax(1).masked_fill(mine == theirs, 0.0).sum(1)
    assert mass.max() < 1e-5
    assert torch.equal(mine[[0, 1, 4, 7]], theirs[[0, 1, 4, 7]])


def test_rows_have_limits_of_their_own_and_others_stay_as_they_are(device: str) -> None:
    logits = torch.randn(6, 500, device=device)
    limits: list[Limits] = [(1.0, 0.0, 3, 1.0), NEUTRAL, (0.5, 0.0, 0, 0.5)]
    mine = kept(truncate, logits, limits, [4, 0, 2])
    assert mine[[0, 1, 3, 5]].all()
    assert mine[4].sum() == 3
    assert torch.equal(mine, kept(reference.truncate, logits, limits, [4, 0, 2]))


def test_equal_logits_are_kept_together(device: str) -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 5.0, -2.0, 0.0, -0.0]], device=device)
    assert kept(truncate, logits, [(1.0, 0.0, 2, 1.0)], [0])[0].tolist() == [
        False,
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert kept(truncate, logits, [(1.0, 0.0, 0, 0.1)], [0])[0].tolist() == [
        False,
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_impossible_tokens_stay_impossible_and_count_nothing(device: str) -> None:
    logits = torch.full((1, 300), -torch.inf, device=device)
    logits[0, [5, 70, 200]] = torch.tensor([1.0, -3.0, 0.5], device=device)
    assert kept(truncate, logits, [(1.0, 0.0, 100, 1.0)], [0]).sum() == 3
    assert kept(truncate, logits, [(1.0, 0.0, 0, 0.97)], [0])[0].nonzero().flatten().tolist() == [5, 200]


def test_extreme_limits_keep_the_likeliest(device: str) -> None:
    logits = torch.randn(1, 400, device=device)
    for limits in [(1e-5, 0.0, 0, 1.0 - 1e-7), (1.0, 1.0, 0, 1.0), (1.0, 0.0, 0, 1e-45), (2.0, 1.0, 1, 1e-30)]:
        assert kept(truncate, logits, [limits], [0])[0].nonzero().flatten().tolist() == [int(logits.argmax())]


def test_a_row_of_nan_harms_nobody(device: str) -> None:
    logits = torch.randn(2, 300, device=device)
    healthy = kept(truncate, logits, [(1.0, 0.0, 5, 0.9)] * 2, [0, 1])[1]
    logits[0] = float("nan")
    rows = torch.tensor([0, 1], device=device)
    ones = torch.ones(2, device=device)
    truncate(logits, rows, ones, 0 * ones, (5 * ones).long(), 0.9 * ones)
    assert torch.equal(logits[1] > -torch.inf, healthy)


@pytest.mark.gpu
def test_llama_vocabulary() -> None:
    logits = (torch.randn(64, 128256, device="cuda") * 3).bfloat16().float()
    limits: list[Limits] = [(0.5 + row / 64, 0.001 * (row % 3), row % 4 * 100, 0.8 + row / 400) for row in range(64)]
    mine, theirs = (kept(function, logits, limits, list(range(64))) for function in (truncate, reference.truncate))
    # Of bfloat16's few values many tokens have the same; where a sum ends just at one, rounding decides on all of them.
    assert (mine != theirs).any(1).sum() <= 2
