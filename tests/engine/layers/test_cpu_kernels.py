"""The compiled kernels against their formulas in float64; what a model runs through them is in test_cpu_ops."""

import math

import pytest
import torch
from numba.core import config as numba_config
from torch import Tensor

from descant_engine.adapters.manifest import TargetModule
from descant_engine.forward_context import LoraInputs
from descant_engine.layers import cpu_lora
from descant_engine.layers.cpu_jit import Parameter, compile_kernel
from descant_engine.layers.cpu_lora import CpuLora, Stretch, stretches
from descant_engine.layers.cpu_ops import CpuOps
from descant_engine.layers.ops import LoraGroup

from ..paged_model import AdapterTables  # noqa: TID252
from .test_cpu_ops import shape_with

ERROR_OF = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
DTYPES = pytest.mark.parametrize("dtype", list(ERROR_OF), ids=str)
MODULES = (TargetModule.Q_PROJ, TargetModule.K_PROJ, TargetModule.V_PROJ)
GROUP = LoraGroup(layer=1, modules=MODULES, widths=(24, 8, 8), in_features=8)


def random(*size: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(got: Tensor, expected: Tensor) -> None:
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error < ERROR_OF[got.dtype], f"relative error {error:.2e}"


@DTYPES
def test_norms_round_once_after_the_sum(dtype: torch.dtype) -> None:
    x, residual, weight = (random(*size, dtype=dtype, seed=i) for i, size in enumerate([(3, 40), (3, 40), (40,)]))
    total = (x + residual).double()
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    normed, summed = CpuOps().add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(summed.double(), total)
    assert_near(normed, expected)
    assert_near(CpuOps().rms_norm(summed, weight, 1e-5), expected)


@DTYPES
def test_rotary_turns_heads_that_lie_in_a_packed_tensor(dtype: torch.dtype) -> None:
    packed = random(5, 7, 16, dtype=dtype, seed=0)
    before = packed.double()
    q, k, v = packed.split([4, 2, 1], dim=1)
    cos_sin = random(30, 16, dtype=torch.float32, seed=1)
    positions = torch.tensor([29, 0, 3, 3, 17])
    CpuOps().rotary(q, k, positions, cos_sin)
    cos, sin = cos_sin[positions].to(dtype).double()[:, None].chunk(2, dim=-1)
    left, right = before[:, :6].chunk(2, dim=-1)
    assert_near(torch.cat([q, k], dim=1), torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1))
    assert torch.equal(v.double(), before[:, 6:])


@DTYPES
def test_silu_of_values_large_and_small(dtype: torch.dtype) -> None:
    gate = torch.linspace(-120, 120, 4097).to(dtype)
    got = CpuOps().silu_mul(torch.cat([gate, torch.ones_like(gate)])[None])[0]
    exact = gate.double() / (1 + (-gate.double()).exp())
    torch.testing.assert_close(got.double(), exact, rtol=ERROR_OF[dtype], atol=1e-7)


def test_silu_hides_no_broken_values() -> None:
    gate = torch.tensor([math.nan, math.inf, 1.0, 1.0])
    up = torch.tensor([1.0, 1.0, math.nan, -math.inf])
    got = CpuOps().silu_mul(torch.cat([gate, up])[None])[0]
    assert [str(value) for value in got.tolist()] == ["nan", "inf", "nan", "-inf"]


@DTYPES
@pytest.mark.parametrize("long_run", [2, 1000], ids=["products", "kernel"])
def test_adapters_of_every_rank_on_a_packed_layer(
    dtype: torch.dtype, long_run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks below, at and above what a kernel's turn or a tile holds; one module that only one adapter changes."""
    monkeypatch.setattr(cpu_lora, "LONG_RUN", long_run)
    ranks = {0: (1, 3, 4), 1: (5, 0, 9), 2: (16, 2, 0)}
    shape = shape_with(3, 1, 8)
    tables = AdapterTables(shape, dtype=dtype)
    delta: dict[int, Tensor] = {-1: torch.zeros(8, 40, dtype=torch.float64)}
    for slot, of_modules in ranks.items():
        adapter, columns = {}, []
        for module, lora_rank, width in zip(MODULES, of_modules, GROUP.widths, strict=True):
            lora_a = random(lora_rank, 8, dtype=dtype, seed=slot)
            lora_b = random(width, lora_rank, dtype=dtype, seed=slot + 7)
            columns.append(0.5 * (lora_b.double() @ lora_a.double()).T)
            if lora_rank:
                adapter[1, module] = lora_a, lora_b, 0.5
        tables.publish(slot, adapter)
        delta[slot] = torch.cat(columns, dim=1)
    slots = [0, 0, -1, 2, 1, 1, 1, -1, -1, 0, 2, 2]
    x, output = random(len(slots), 8, dtype=dtype, seed=3), random(len(slots), 40, dtype=dtype, seed=4)
    expected = output.double() + torch.stack([row @ delta[slot] for row, slot in zip(x.double(), slots, strict=True)])
    lora = LoraInputs(tables.tables, torch.tensor(slots, dtype=torch.int32), frozenset(MODULES))
    assert_near(CpuLora().add(GROUP, lora, x, output), expected)


def test_layers_that_no_adapter_of_the_step_changes_are_left_alone() -> None:
    tables = AdapterTables(shape_with(3, 1, 8)).tables
    lora = LoraInputs(tables, torch.zeros(2, dtype=torch.int32), frozenset({TargetModule.DOWN_PROJ}))
    output = torch.ones(2, 40)
    assert torch.equal(CpuLora().add(GROUP, lora, torch.ones(2, 8), output), torch.ones(2, 40))


def test_stretches_are_as_few_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_lora, "LONG_RUN", 3)
    assert stretches([-1, -1]) == ()
    assert stretches([0, 1, 0]) == (Stretch(0, 3, None),)
    assert stretches([2, 0, 0, -1, 1, 1, 1, 1, 2, 2, 0]) == (
        Stretch(0, 3, None),
        Stretch(4, 8, 1),
        Stretch(8, 11, None),
    )


def test_kernels_compile_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_config, "CACHE_LOCATOR_CLASSES", "ZipCacheLocator")
    kernel = compile_kernel(_double, (Parameter.INT64S,), torch.float32)
    number = torch.tensor([21])
    kernel(number.data_ptr())
    assert number.item() == 42


def _double(number: list[int]) -> None:
    number[0] *= 2
