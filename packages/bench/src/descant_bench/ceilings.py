"""What the device can do: a large copy and a large product, timed once, before the engine takes the memory."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from descant_bench.step_work import Ceilings

_REPEATS = 7


def add_ceiling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("ceilings of the device (measured where left out)")
    group.add_argument("--copy-tb-s", type=float, help="bytes read plus written by a copy, TB/s; an H200: 4.26")
    group.add_argument("--tflops", type=float, help="dense products in the model's dtype; an H200 in bfloat16: 790")


def ceilings(args: argparse.Namespace, device: str, dtype: str) -> Ceilings:
    copy = args.copy_tb_s * 1e12 if args.copy_tb_s else measure_copy(device)
    product = args.tflops * 1e12 if args.tflops else measure_product(device, getattr(torch, dtype))
    return Ceilings(copy, product)


def measure_copy(device: str) -> float:
    """Bytes a second, read plus written."""
    num_bytes = 2 << 30 if device == "cuda" else 128 << 20
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _median_seconds(lambda: target.copy_(source), device)


def measure_product(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a square product."""
    size = 8192 if device == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _median_seconds(lambda: left @ right, device)


@torch.inference_mode()
def _median_seconds(work: Callable[[], object], device: str) -> float:
    seconds = []
    work()
    for _ in range(_REPEATS):
        _synchronize(device)
        start = time.perf_counter()
        work()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    if device == "cuda":
        torch.cuda.empty_cache()
    return statistics.median(seconds)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
