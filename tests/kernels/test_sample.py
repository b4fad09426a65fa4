import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from descant_kernels import reference, sample
from descant_kernels.sample import _gumbel


def draw(logits: Tensor, temperature: float, seeds: Tensor, positions: Tensor) -> Tensor:
    return sample(logits, torch.full((logits.shape[0],), temperature, device=logits.device), seeds, positions)


@pytest.mark.parametrize("vocab", [2, 1000, 5003])
def test_temperature_0_takes_the_first_of_the_largest(device: str, dtype: torch.dtype, vocab: int) -> None:
    logits = (torch.randn(4, vocab, device=device) * 2).to(dtype)
    logits[0, :] = 1.0
    logits[1, vocab - 1] = 100.0
    seeds, positions = torch.randint(1 << 62, (2, 4), device=device)
    tokens = draw(logits, 0.0, seeds, positions % 1000)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [int((row == row.max()).nonzero()[0]) for row in logits]


@pytest.mark.parametrize("vocab", [50, 9001])
def test_same_draws_as_the_reference(device: str, vocab: int) -> None:
    rows = 12
    logits = torch.randn(rows, vocab, device=device) * 3
    temperatures = torch.tensor([0.0, 0.3, 1.0, 2.0] * 3, device=device)
    seeds = torch.randint(-(1 << 63), (1 << 63) - 1, (rows,), device=device)
    positions = torch.randint(1 << 17, (rows,), device=device)
    assert torch.equal(
        sample(logits, temperatures, seeds, positions), reference.sample(logits, temperatures, seeds, positions)
    )


@triton.jit
def _gumbel_kernel(out, bits, num: tl.constexpr):
    places = tl.arange(0, num)
    tl.store(out + places, _gumbel(tl.load(bits + places).to(tl.uint32)))


def test_every_random_number_leaves_a_token_possible(device: str) -> None:
    """Those that are too near to 2^32 for a float below it as well."""
    bits = torch.tensor([0, 1, 1 << 25, 1 << 31, 0xFFFFFF00, 0xFFFFFF7F, 0xFFFFFF80, 0xFFFFFFFF], device=device)
    noise = torch.empty(len(bits), device=device)
    _gumbel_kernel[(1,)](noise, bits, num=len(bits))
    assert noise.isfinite().all()
    assert noise.diff().le(0).all(), "larger numbers are smaller draws"
    torch.testing.assert_close(noise, reference.gumbel(bits), rtol=1e-6, atol=1e-6)


def test_philox_equals_the_published_vectors() -> None:
    """Known answers of Random123 (kat_vectors, philox4x32 10) whose counters end in two zeros."""
    words = reference.philox(torch.tensor(0), torch.tensor(0), torch.tensor(0))
    assert [f"{word:08x}" for word in words.tolist()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_a_draw_depends_on_seed_and_position_only(device: str) -> None:
    logits = torch.randn(1, 200, device=device)
    seed, position = torch.tensor([7], device=device), torch.tensor([3], device=device)
    alone = draw(logits, 1.0, seed, position)
    others = torch.randn(5, 200, device=device)
    batch = draw(
        torch.cat((others, logits)), 1.0, torch.arange(2, 8, device=device), torch.full((6,), 3, device=device)
    )
    assert batch[-1] == alone[0]
    positions = torch.arange(40, device=device)
    draws = draw(logits.expand(40, -1).contiguous(), 1.0, seed.expand(40).contiguous(), positions)
    assert len(set(draws.tolist())) > 10


def test_draws_follow_the_softmax(device: str) -> None:
    """Chi-squared of 4,000 draws by the reference's noise, which the kernel shares, and of 150 by the kernel."""
    logits = torch.tensor([2.0, 0.0, 1.0, float("-inf"), -1.0, 1.5], device=device)
    probabilities = (logits / 0.8).softmax(0)
    for function, count in ((reference.sample, 4000), (sample, 150)):
        rows = logits.expand(count, -1).contiguous()
        seeds = torch.full((count,), 11, device=device)
        tokens = function(rows, torch.full((count,), 0.8, device=device), seeds, torch.arange(count, device=device))
        observed = torch.bincount(tokens, minlength=6)
        assert observed[3] == 0
        possible = probabilities > 0
        expected = probabilities[possible] * count
        statistic = ((observed[possible] - expected) ** 2 / expected).sum()
        assert statistic < 18.5, "1 in 1,000 for 4 degrees of freedom"


def test_a_row_of_nan_stays_inside_the_vocabulary(device: str) -> None:
    logits = torch.randn(2, 30, device=device)
    seeds, positions = torch.zeros(2, 2, dtype=torch.int64, device=device)
    healthy = draw(logits, 1.0, seeds, positions)[1]
    logits[0] = float("nan")
    tokens = draw(logits, 1.0, seeds, positions)
    assert 0 <= tokens[0] < 30
    assert tokens[1] == healthy


@pytest.mark.gpu
def test_llama_vocabulary() -> None:
    logits = torch.randn(64, 128256, dtype=torch.bfloat16, device="cuda") * 3
    seeds, positions = torch.randint(1 << 30, (2, 64), device="cuda")
    temperatures = torch.linspace(0, 2, 64, device="cuda")
    expected = reference.sample(logits, temperatures, seeds, positions)
    assert torch.equal(sample(logits, temperatures, seeds, positions), expected)
