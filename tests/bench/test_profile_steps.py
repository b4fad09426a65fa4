"""The profile of a step: parts add up, floors follow from shapes, kernels that nobody knows are shown."""

import importlib
import json
import pkgutil
import re
from io import StringIO
from pathlib import Path

import pytest

import descant_kernels
from descant_bench import profile_steps
from descant_bench.environment import describe_environment
from descant_bench.intervals import occupancy
from descant_bench.step_parts import Part, part_of_kernel
from descant_bench.step_report import Workload, print_report, step_report
from descant_bench.step_trace import device_trace
from descant_bench.step_work import Ceilings, ModelWork, Work
from descant_bench.watched_methods import HOST_PARTS
from descant_engine.adapters.manifest import AdapterManifest, ModuleLora, TargetModule
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig
from descant_engine.scheduler.plan import ScheduledRequest

PRODUCT = re.compile(r"_linear|aten::(addmm|mm)$")
FAST = ("--device", "cpu", "--dtype", "float32", "--num-blocks", "64", "--max-num-seqs", "8", "--max-model-len", "128")
CEILINGS = ("--copy-tb-s", "0.01", "--tflops", "0.1", "--commit", "abc")
KERNELS = {
    "nvjet_tst_128x64_64x8_2x1_v_bz_TNT": Part.DENSE,
    "void cublasLt::splitKreduce_kernel<32, 16>": Part.DENSE,
    "_skinny_product_kernel": Part.DENSE,
    "_decode_inputs_kernel": Part.INPUTS,
    "_decode_kernel": Part.ATTENTION,
    "_join_splits_kernel": Part.ATTENTION,
    "_prefill_kernel": Part.ATTENTION,
    "void pytorch_flash::flash_fwd_kernel<...>": Part.ATTENTION,
    "_shrink_kernel": Part.LORA_SHRINK,
    "_expand_kernel": Part.LORA_EXPAND,
    "_cut_segments_kernel": Part.LORA_SEGMENTS,
    "_place_tokens_kernel": Part.LORA_SEGMENTS,
    "_largest_of_tile_kernel": Part.SAMPLING,
    "best_of_row_kernel": Part.SAMPLING,
    "_add_rms_norm_kernel": Part.NORM,
    "_rotary_kv_write_kernel": Part.ROTARY,
    "_silu_mul_kernel": Part.ACTIVATION,
    "Memcpy HtoD (Pinned -> Device)": Part.COPIES,
    "Memset (Device)": Part.COPIES,
    "void at::native::index_elementwise_kernel<128, 4>": Part.INPUTS,
    "triton_mystery_0": Part.UNKNOWN,
}


@pytest.mark.parametrize(("name", "part"), KERNELS.items())
def test_kernel_by_name(name: str, part: Part) -> None:
    assert part_of_kernel(name) is part


def test_every_kernel_of_ours_has_a_part() -> None:
    names = set()
    for module in pkgutil.iter_modules(descant_kernels.__path__):
        members = vars(importlib.import_module(f"descant_kernels.{module.name}"))
        names |= {name for name in members if name.endswith("_kernel")}
    assert len(names) > 10
    assert [name for name in names if part_of_kernel(name) is Part.UNKNOWN] == []


def test_overlapping_intervals() -> None:
    found = occupancy([(10, 20), (0, 4), (12, 15), (18, 25)])
    assert (found.span, found.busy, found.idle) == (25, 19, 6)
    assert found.overlap == 5  # 3 within the first, and 2 of the last
    assert occupancy([]).span == 0


def test_report_of_a_device_trace() -> None:
    trace = device_trace([("nvjet_x", 0, 10), ("_shrink_kernel", 2, 6), ("mystery", 15, 20)], seconds=40e-6)
    report = step_report(
        workload=Workload("decode", 1, 8, 0, 2),
        environment=describe_environment("cpu", "abc"),
        limits=Ceilings(1e12, 1e12),
        step_us=20.0,
        host_seconds={"schedule": 4e-6},
        trace=trace,
        work={Part.DENSE: Work(num_bytes=4_000_000, num_operations=1)},
    )
    assert report.device is not None
    assert (report.device.busy_us, report.device.idle_us, report.device.overlap_us) == (7.5, 2.5, 2.0)
    assert report.device.idle_share == 0.25
    dense = report.parts["dense products"]
    assert (dense.us, dense.floor_us, dense.over_floor) == (5.0, 2.0, 2.5)
    assert report.host_us == {"schedule": 2.0}
    out = StringIO()
    print_report(report, out)
    assert "mystery" in out.getvalue()
    assert "idle 2.5 us (25.0%)" in out.getvalue()


def test_floor_of_a_decode_step(tiny_config: Path) -> None:
    config = resolve(EngineConfig(model=str(tiny_config), dtype="float32", device="cpu"))
    adapter = AdapterManifest("d", tiny_config, (ModuleLora(0, TargetModule.Q_PROJ, 8, 1.0, "a", "b"),))
    scheduled = [ScheduledRequest(name, 9, 1, (), True) for name in ("one", "two", "base")]
    work = ModelWork(config).of_step(scheduled, {"one": adapter, "two": adapter})
    layer = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 96
    weights = 2 * layer + 300 * 64
    assert work[Part.DENSE] == Work(4 * weights, 2 * 3 * weights)
    keys_and_values = 3 * 10 * 2 * 2 * 2 * 16
    assert work[Part.ATTENTION].num_bytes == 4 * (keys_and_values + 2 * 3 * 64 * 2)
    assert work[Part.LORA_SHRINK] == Work(4 * 8 * 64, 2 * 2 * 8 * 64)  # read once, used by two tokens
    assert work[Part.LORA_EXPAND] == Work(4 * 8 * 64, 2 * 2 * 8 * 64)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_profile_on_the_cpu(phase: str, tiny_config: Path, tmp_path: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "profile.json"
    run_main(
        profile_steps.main,
        *("--model", tiny_config, "--phase", phase, "--batch", 3, "--prompt-tokens", 24, "--steps", 4),
        *("--num-adapters", 2, "--lora-rank", 4, "--max-num-batched-tokens", 32, "--output", output, *FAST, *CEILINGS),
    )
    report = json.loads(output.read_text())
    assert {"dense products", "attention", "lora", "norm", "host"} <= report["parts"].keys()
    assert report["parts"]["lora"]["floor_us"] > 0
    products = {kernel["part"] for kernel in report["kernels"] if PRODUCT.search(kernel["name"])}
    assert products == {"dense products"}  # also those within adapted layers
    assert 0 < sum(part["us"] for part in report["parts"].values()) <= report["traced_step_us"] * 1.2
    assert report["host_us"].keys() == set(HOST_PARTS)
    assert report["device"] is None
    assert report["workload"]["phase"] == phase


def test_a_batch_that_cannot_decode_together_is_refused(tiny_config: Path, run_main) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit, match="leaves 8 tokens"):
        run_main(profile_steps.main, "--model", tiny_config, "--batch", 2, "--prompt-tokens", 120, *FAST, *CEILINGS)
