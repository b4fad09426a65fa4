"""Where the time of some steps went, by torch's profiler: kernels by name on CUDA, operations by layer on the CPU."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from descant_bench.intervals import Occupancy, occupancy
from descant_bench.step_parts import Part, part_of_kernel
from descant_bench.watched_methods import Function, Method, wrapped
from descant_engine.layers.attention import Attention
from descant_engine.layers.cpu_ops import CpuOps
from descant_engine.layers.embedding import Embedding, LmHead
from descant_engine.layers.linear import Linear
from descant_engine.layers.lora import LoraLinear
from descant_engine.layers.ops import Product
from descant_engine.runner.model_runner import ModelRunner

_RANGE = "descant part: "
_CPU_PARTS: tuple[tuple[Part, Method], ...] = (
    (Part.HOST, Method(ModelRunner, "forward")),
    (Part.LORA, Method(LoraLinear, "forward")),
    (Part.DENSE, Method(LmHead, "forward")),
    (Part.INPUTS, Method(Embedding, "forward")),
    (Part.ATTENTION, Method(Attention, "forward")),
    (Part.ROTARY, Method(CpuOps, "rotary")),
    (Part.NORM, Method(CpuOps, "rms_norm")),
    (Part.NORM, Method(CpuOps, "add_rms_norm")),
    (Part.ACTIVATION, Method(CpuOps, "silu_mul")),
    (Part.SAMPLING, Method(ModelRunner, "sample")),
)
"""Of nested ones the innermost counts; products of linear layers are within them, see `_ranged_products`."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """A kernel, or on the CPU an operation within a part; of all steps together."""

    name: str
    part: Part
    us: float
    launches: int


@dataclass(frozen=True, slots=True)
class StepTrace:
    kernels: tuple[KernelTime, ...]
    """Longest first."""
    device: Occupancy | None
    """us; None on the CPU."""
    seconds: float
    """That the steps took under the profiler."""


def trace_steps(run_steps: Callable[[], None], device: str) -> StepTrace:
    """Runs the steps under the profiler. On CUDA whatever was launched before must have ended."""
    if device == "cuda":
        return _trace_cuda(run_steps)
    return _trace_cpu(run_steps)


def _trace_cuda(run_steps: Callable[[], None]) -> StepTrace:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        start = time.perf_counter()
        run_steps()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    kernels = [event for event in _events(profiler) if event.device_type == DeviceType.CUDA]
    if not kernels:
        raise RuntimeError("torch's profiler saw no kernel: is CUPTI installed, and may this user profile the device?")
    return device_trace([(event.name, event.time_range.start, event.time_range.end) for event in kernels], seconds)


def device_trace(kernels: Iterable[tuple[str, float, float]], seconds: float) -> StepTrace:
    """Of (name, start, end) in us."""
    listed = list(kernels)
    named = ((name, part_of_kernel(name), end - start) for name, start, end in listed)
    return StepTrace(_sum_by_name(named), occupancy((start, end) for _, start, end in listed), seconds)


def _trace_cpu(run_steps: Callable[[], None]) -> StepTrace:
    with ExitStack() as ranges:
        for part, method in _CPU_PARTS:
            ranges.enter_context(wrapped(method, partial(_ranged, part)))
        ranges.enter_context(_ranged_products())
        profiler = ranges.enter_context(profile(activities=[ProfilerActivity.CPU]))
        start = time.perf_counter()
        run_steps()
        seconds = time.perf_counter() - start
    return StepTrace(_sum_by_name(_cpu_times(_events(profiler))), None, seconds)


def _events(profiler: Any) -> list[FunctionEvent]:
    return list(profiler.events() or [])


def _ranged(part: Part, method: Function) -> Function:
    def ranged(*args: object, **kwargs: object) -> object:
        with record_function(_RANGE + part):
            return method(*args, **kwargs)

    return ranged


@contextmanager
def _ranged_products() -> Iterator[None]:
    """An adapted layer takes its base's product and calls it itself, so it is told apart where it is handed out."""
    name = "product"
    original: property = vars(Linear)[name]
    setattr(Linear, name, property(lambda linear: partial(_call_ranged, original.__get__(linear))))
    try:
        yield
    finally:
        setattr(Linear, name, original)


def _call_ranged(product: Product, x: Tensor) -> Tensor:
    with record_function(_RANGE + Part.DENSE):
        return product(x)


def _cpu_times(events: Iterable[FunctionEvent]) -> Iterator[tuple[str, Part, float]]:
    for event in events:
        part = _enclosing_part(event)
        if event.name.startswith(_RANGE):  # what is left without torch's operations: Python, and code called from it
            yield f"outside of torch's operations, {part}", part, event.self_cpu_time_total
        elif not event.name.startswith("ProfilerStep"):
            yield event.name, part, event.self_cpu_time_total


def _enclosing_part(event: FunctionEvent) -> Part:
    around: FunctionEvent | None = event
    while around is not None:
        if around.name.startswith(_RANGE):
            return Part(around.name.removeprefix(_RANGE))
        around = around.cpu_parent
    return Part.HOST


def _sum_by_name(times: Iterable[tuple[str, Part, float]]) -> tuple[KernelTime, ...]:
    us: dict[tuple[str, Part], float] = defaultdict(float)
    launches: dict[tuple[str, Part], int] = defaultdict(int)
    for name, part, duration in times:
        us[name, part] += duration
        launches[name, part] += 1
    kernels = (KernelTime(name, part, us[name, part], launches[name, part]) for name, part in us)
    return tuple(sorted(kernels, key=lambda kernel: -kernel.us))


@contextmanager
def quiet_device(device: str) -> Iterator[None]:
    """Nothing runs on the device when it is entered, nor when it is left."""
    if device == "cuda":
        torch.cuda.synchronize()
    yield
    if device == "cuda":
        torch.cuda.synchronize()
