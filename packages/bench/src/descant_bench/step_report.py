"""A profile of steps as data and as a table. Times are microseconds a step."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TextIO

from descant_bench.environment import Environment
from descant_bench.step_parts import Part
from descant_bench.step_trace import StepTrace
from descant_bench.step_work import Ceilings, Work

SHOWN_SHARE = 0.002
"""Kernels below this share of the step are left out of the printed list, unless nobody knows what they are."""


@dataclass(frozen=True, slots=True)
class Workload:
    phase: Literal["decode", "prefill"]
    batch: int
    prompt_tokens: int
    num_adapters: int
    steps: int


@dataclass(frozen=True, slots=True)
class PartReport:
    us: float
    launches: float
    gigabytes: float | None
    """Least bytes; None where no floor is defined."""
    gigaoperations: float | None
    floor_us: float | None
    over_floor: float | None


@dataclass(frozen=True, slots=True)
class DeviceReport:
    busy_us: float
    idle_us: float
    idle_share: float
    overlap_us: float
    """Kernel time that ran beside other kernels."""


@dataclass(frozen=True, slots=True)
class KernelReport:
    name: str
    part: Part
    us: float
    launches: float


@dataclass(frozen=True, slots=True)
class StepReport:
    workload: Workload
    environment: Environment
    ceilings: Ceilings
    step_us: float
    """Without the profiler."""
    traced_step_us: float
    floor_us: float
    host_us: dict[str, float]
    """Without the profiler. On the CPU "prepare and launch" holds the model itself."""
    device: DeviceReport | None
    """None on the CPU."""
    parts: dict[str, PartReport]
    kernels: tuple[KernelReport, ...]


def step_report(
    *,
    workload: Workload,
    environment: Environment,
    limits: Ceilings,
    step_us: float,
    host_seconds: Mapping[str, float],
    trace: StepTrace,
    work: Mapping[Part, Work],
) -> StepReport:
    steps = workload.steps
    parts = _parts(trace, _seen_together(work, trace), limits, steps)
    return StepReport(
        workload=workload,
        environment=environment,
        ceilings=limits,
        step_us=round(step_us, 1),
        traced_step_us=round(trace.seconds * 1e6 / steps, 1),
        floor_us=round(sum(1e6 * limits.seconds(part) / steps for part in work.values()), 1),
        host_us={name: round(1e6 * seconds / steps, 1) for name, seconds in host_seconds.items()},
        device=_device(trace, steps),
        parts=parts,
        kernels=tuple(
            KernelReport(kernel.name, kernel.part, round(kernel.us / steps, 2), kernel.launches / steps)
            for kernel in trace.kernels
        ),
    )


def print_report(report: StepReport, out: TextIO) -> None:
    print(_heading(report), file=out)
    print(f"\n{'part':<22}{'us/step':>10}{'launches':>10}{'GB':>9}{'Gop':>10}{'floor us':>10}{'x floor':>9}", file=out)
    for name, part in report.parts.items():
        cells = [_cell(part.gigabytes, 9, 3), _cell(part.gigaoperations, 10, 1)]
        cells += [_cell(part.floor_us, 10, 1), _cell(part.over_floor, 9, 2)]
        print(f"{name:<22}{part.us:>10.1f}{part.launches:>10.1f}{''.join(cells)}", file=out)
    print(f"{'all floors':<22}{report.floor_us:>49.1f}{report.step_us / max(report.floor_us, 1e-9):>11.2f}", file=out)
    for line in (*_device_lines(report), *_host_lines(report), *_kernel_lines(report)):
        print(line, file=out)


def _seen_together(work: Mapping[Part, Work], trace: StepTrace) -> dict[Part, Work]:
    """Where the trace cannot tell shrink from expand, neither does the floor."""
    merged = dict(work)
    if any(kernel.part is Part.LORA for kernel in trace.kernels):
        halves = [merged.pop(part, Work()) for part in (Part.LORA_SHRINK, Part.LORA_EXPAND)]
        merged[Part.LORA] = halves[0].plus(halves[1])
    return merged


def _parts(trace: StepTrace, work: Mapping[Part, Work], limits: Ceilings, steps: int) -> dict[str, PartReport]:
    us: dict[Part, float] = defaultdict(float)
    launches: dict[Part, int] = defaultdict(int)
    for kernel in trace.kernels:
        us[kernel.part] += kernel.us
        launches[kernel.part] += kernel.launches
    reports = {part: _part(us[part] / steps, launches[part] / steps, work.get(part), limits, steps) for part in us}
    return {str(part): reports[part] for part in sorted(reports, key=lambda part: -reports[part].us)}


def _part(us: float, launches: float, work: Work | None, limits: Ceilings, steps: int) -> PartReport:
    if work is None or work == Work():
        return PartReport(round(us, 1), launches, None, None, None, None)
    floor = 1e6 * limits.seconds(work) / steps
    return PartReport(
        us=round(us, 1),
        launches=launches,
        gigabytes=round(work.num_bytes / steps / 1e9, 6),
        gigaoperations=round(work.num_operations / steps / 1e9, 6),
        floor_us=round(floor, 2),
        over_floor=round(us / floor, 2),
    )


def _device(trace: StepTrace, steps: int) -> DeviceReport | None:
    if trace.device is None or not trace.device.span:
        return None
    device = trace.device
    return DeviceReport(
        busy_us=round(device.busy / steps, 1),
        idle_us=round(device.idle / steps, 1),
        idle_share=round(device.idle / device.span, 4),
        overlap_us=round(device.overlap / steps, 1),
    )


def _heading(report: StepReport) -> str:
    load, limits = report.workload, report.ceilings
    return (
        f"{load.phase}, batch {load.batch}, {load.prompt_tokens} prompt tokens, {load.num_adapters} adapters, "
        f"{load.steps} steps on {report.environment.device}; ceilings {limits.bytes_per_s / 1e12:.3f} TB/s, "
        f"{limits.operations_per_s / 1e12:.1f} TFLOP/s\n"
        f"step {report.step_us:.1f} us ({report.traced_step_us:.1f} us under the profiler)"
    )


def _device_lines(report: StepReport) -> Iterable[str]:
    if report.device is not None:
        device = report.device
        yield (
            f"\ndevice: busy {device.busy_us:.1f} us, idle {device.idle_us:.1f} us ({device.idle_share:.1%}), "
            f"overlapped {device.overlap_us:.1f} us"
        )


def _host_lines(report: StepReport) -> Iterable[str]:
    known = sum(report.host_us.values())
    times = [f"{name} {us:.1f}" for name, us in report.host_us.items()]
    yield f"\nhost, us a step: {', '.join(times)}, elsewhere {report.step_us - known:.1f}"


def _kernel_lines(report: StepReport) -> Iterable[str]:
    yield "\nlongest:"
    shown = SHOWN_SHARE * sum(part.us for part in report.parts.values())
    for kernel in report.kernels:
        if kernel.us >= shown or kernel.part is Part.UNKNOWN:
            yield f"  {kernel.us:>9.1f} us {kernel.launches:>7.1f}x  {kernel.part:<20} {kernel.name[:100]}"


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"
