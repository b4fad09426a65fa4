"""Recorded requests on an engine in this process: token ids in and out, nothing (de)tokenised."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from descant_bench.percentiles import percentile
from descant_bench.recorded import RecordedRequest
from descant_bench.step_work import Ceilings, ModelWork, sum_of_steps
from descant_bench.watched_methods import HOST_PARTS, MethodClock, recorded_plans
from descant_engine.adapters.files import read_adapter
from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.config import ResolvedConfig
from descant_engine.engine import Engine
from descant_engine.request import EngineRequest, TokenDelta
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.plan import StepPlan

NUM_READERS = 8
"""Threads that take adapters' digests, before any clock starts."""
LONGEST_NAP_S = 0.01


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds from a request's arrival to its first token, and between its tokens on average."""

    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    s: float
    out_tok_s: float
    total_tok_s: float
    req_s: float
    num_steps: int
    cpu_ms_per_step: float
    """Processor time of all threads of this process."""
    host_ms_per_step: float
    """Time that is not spent waiting for the device. On the CPU the model's own time is in it."""
    latencies: Latencies
    groups: dict[str, Latencies]
    floor_s: float | None
    """What the run's steps would take if each part ran at the device's ceiling."""
    of_floor: float | None
    """floor_s / s: 1 is the roofline."""


@dataclass(slots=True)
class _Progress:
    arrival: float
    num_tokens: int = 0
    first: float = 0.0
    last: float = 0.0

    def note(self, num_tokens: int, now: float) -> None:
        self.first = self.first or now
        self.last = now
        self.num_tokens += num_tokens


@dataclass(slots=True)
class _Run:
    """What is noted while a run goes on."""

    progress: dict[str, _Progress] = field(default_factory=dict)
    num_steps: int = 0

    def note(self, deltas: Sequence[TokenDelta]) -> None:
        now = time.perf_counter()
        self.num_steps += 1
        for delta in deltas:
            if delta.error is not None:
                raise SystemExit(f"request {delta.request_id}: {delta.error}")
            self.progress[delta.request_id].note(len(delta.token_ids), now)


class Replay:
    """One engine, any number of runs. Adapter 7 is `adapter_root`/0007, registered when a run first names it."""

    def __init__(self, config: ResolvedConfig, adapter_root: Path | None) -> None:
        self.config = config
        self.engine = Engine(config)
        self.manifests: dict[str, AdapterManifest] = {}
        """Of the requests that were submitted, by request id."""
        self._adapter_root = adapter_root
        self._adapters: dict[int, AdapterManifest] = {}
        self._run_numbers = count()
        self._work = ModelWork(config)

    def run(self, requests: Sequence[RecordedRequest], ceilings: Ceilings | None = None) -> RunResult:
        """From the first arrival to the last token. Every run starts with nothing of its own in the prefix cache."""
        self.register(requests)
        clock, run = MethodClock({"wait for the device": HOST_PARTS["wait for the device"]}), _Run()
        with recorded_plans() as plans, clock.running():
            start, cpu_start = time.perf_counter(), time.process_time()
            ids = self._drive(requests, start, run)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        floor = None if ceilings is None else self._floor_seconds(plans, ceilings)
        num_output = sum(progress.num_tokens for progress in run.progress.values())
        num_prompt = sum(len(request.prompt_token_ids) for request in requests)
        idle = clock.seconds["wait for the device"]
        return RunResult(
            s=round(seconds, 6),
            out_tok_s=round(num_output / seconds, 1),
            total_tok_s=round((num_prompt + num_output) / seconds, 1),
            req_s=round(len(requests) / seconds, 2),
            num_steps=run.num_steps,
            cpu_ms_per_step=round(1e3 * cpu_seconds / run.num_steps, 3),
            host_ms_per_step=round(1e3 * (seconds - idle) / run.num_steps, 3),
            latencies=_latencies(list(run.progress.values())),
            groups=_by_group(requests, ids, run),
            floor_s=None if floor is None else round(floor, 6),
            of_floor=None if floor is None else round(floor / seconds, 3),
        )

    def submit(self, requests: Sequence[RecordedRequest]) -> list[str]:
        """Hands all of them to the engine, as one tenant of their own. Returns their ids."""
        run = next(self._run_numbers)
        return [self._submit(request, f"{run}-{index}", str(run)) for index, request in enumerate(requests)]

    def register(self, requests: Sequence[RecordedRequest]) -> None:
        """Registers the adapters that `requests` name and that are not there yet."""
        numbers = sorted({r.adapter for r in requests if r.adapter is not None} - self._adapters.keys())
        with ThreadPoolExecutor(NUM_READERS) as readers:
            for number, manifest in zip(numbers, readers.map(self._read_adapter, numbers), strict=True):
                self.engine.register_adapter(manifest)
                self._adapters[number] = manifest

    def _drive(self, requests: Sequence[RecordedRequest], start: float, run: _Run) -> list[str]:
        salt = str(next(self._run_numbers))
        ids = [f"{salt}-{index}" for index in range(len(requests))]
        arrivals = sorted(zip(requests, ids, strict=True), key=lambda pair: pair[0].arrival_s)
        due: Iterator[tuple[RecordedRequest, str]] = iter(arrivals)
        upcoming = next(due, None)
        while upcoming is not None or self.engine.has_work:
            while upcoming is not None and start + upcoming[0].arrival_s <= time.perf_counter():
                request, request_id = upcoming
                run.progress[request_id] = _Progress(start + request.arrival_s)
                self._submit(request, request_id, salt)
                upcoming = next(due, None)
            spare_s = self.engine.seconds_to_spare() if self.engine.has_work else LONGEST_NAP_S
            if spare_s == 0.0:
                run.note(self.engine.step())
            else:
                due_s = LONGEST_NAP_S if upcoming is None else start + upcoming[0].arrival_s - time.perf_counter()
                time.sleep(max(0.0, min(spare_s, due_s)))
        return ids

    def _submit(self, request: RecordedRequest, request_id: str, salt: str) -> str:
        manifest = None if request.adapter is None else self._adapters[request.adapter]
        if manifest is not None:
            self.manifests[request_id] = manifest
        self.engine.submit(
            EngineRequest(
                request_id=request_id,
                prompt_token_ids=request.prompt_token_ids,
                params=SamplingParams(temperature=0.0, max_tokens=request.max_tokens, ignore_eos=True),
                adapter_digest=None if manifest is None else manifest.digest,
                tenant=request.tenant,
                tenant_salt=salt,
            )
        )
        return request_id

    def _read_adapter(self, number: int) -> AdapterManifest:
        if self._adapter_root is None:
            raise SystemExit("the requests name adapters: say where they are with --adapters FOLDER")
        folder = self._adapter_root / f"{number:04d}"
        return read_adapter(folder, self.config.shape, self.config.user.max_lora_rank)

    def _floor_seconds(self, plans: Sequence[StepPlan], ceilings: Ceilings) -> float:
        work = sum_of_steps(self._work.of_step(plan.scheduled, self.manifests) for plan in plans)
        return sum(ceilings.seconds(part) for part in work.values())


def _by_group(requests: Sequence[RecordedRequest], ids: Sequence[str], run: _Run) -> dict[str, Latencies]:
    groups: dict[str, list[_Progress]] = defaultdict(list)
    for request, request_id in zip(requests, ids, strict=True):
        if request.group is not None:
            groups[request.group].append(run.progress[request_id])
    return {group: _latencies(progress) for group, progress in sorted(groups.items())}


def _latencies(progress: Sequence[_Progress]) -> Latencies:
    firsts = [1e3 * (p.first - p.arrival) for p in progress]
    gaps = [1e3 * (p.last - p.first) / (p.num_tokens - 1) for p in progress if p.num_tokens > 1]
    return Latencies(
        *(round(percentile(values, share), 2) for values in (firsts, gaps or [0.0]) for share in (0.5, 0.99))
    )


def median_run(runs: Sequence[RunResult]) -> RunResult:
    """The run in the middle by time, whole: its fields belong together."""
    middle = statistics.median_low([run.s for run in runs])
    return next(run for run in runs if run.s == middle)
