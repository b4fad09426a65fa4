"""What reading an adapter costs, and what it costs the engine beside it.

    python -m descant_bench.adapter_loads --model FOLDER --adapters FX [--make 64 --modules attention --rank 8]

Reads every adapter of FX once into host memory, as an engine does (`--make` writes some first), with one thread and
with several, and prints a JSON object for each: milliseconds of wall and of processor time of each stage an adapter,
adapters a second, and how much longer a step's host work takes beside it. That work is simulated by `StepLoop`: a
millisecond of Python, on CUDA with launches among it, then a wait without the interpreter lock.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from descant_bench.engine_options import add_engine_options, engine_config
from descant_bench.percentiles import percentile
from descant_bench.random_adapters import modules_named, write_adapters
from descant_bench.watched_methods import Function, Method, wrapped
from descant_engine.adapters.files import read_adapter
from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.cache.adapter_layout import plan_layout
from descant_engine.config import ResolvedConfig
from descant_engine.runner import adapter_reading
from descant_engine.runner.adapter_reading import AdapterReader
from descant_engine.runner.host_blocks import HostBlocks

STAGES: dict[str, Method] = {
    "read": Method(AdapterReader, "_read_file"),
    "hash": Method(adapter_reading, "content_digest"),
    "convert": Method(adapter_reading, "_elements"),
    "check": Method(adapter_reading, "_check_finite"),
    "pin": Method(HostBlocks, "_grow"),
    "lay out": Method(adapter_reading, "_carry_out"),
}
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_WAIT_S = 0.002
_LAUNCHES = 100


class StageClock:
    """Seconds that loading threads spend in each stage: on the wall, and of a processor."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.processor: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def running(self, names: Sequence[str] = tuple(STAGES)) -> Iterator[None]:
        if not names:
            yield
            return
        with wrapped(STAGES[names[0]], lambda method: self._timed(names[0], method)), self.running(names[1:]):
            yield

    def _timed(self, name: str, method: Function) -> Function:
        def timed(*args: object) -> object:
            wall, processor = time.perf_counter(), time.thread_time()
            try:
                return method(*args)
            finally:
                with self._lock:
                    self.wall[name] += time.perf_counter() - wall
                    self.processor[name] += time.thread_time() - processor

        return timed


class StepLoop:
    """Stands for the engine's thread."""

    def __init__(self, device: str) -> None:
        self._tensor = torch.zeros(1, device=device) if device == "cuda" else None
        self._num_rounds = 1
        self._num_rounds = max(1, round(0.001 / statistics.median(self._work() for _ in range(200))))

    def run_while(self, condition: Callable[[], bool]) -> list[float]:
        """Milliseconds of each step's work until `condition` is no longer true."""
        spent = []
        while condition():
            spent.append(1e3 * self._work())
            time.sleep(_WAIT_S)
            if self._tensor is not None:
                torch.cuda.synchronize()
        return spent

    def run_for(self, seconds: float) -> list[float]:
        end = time.perf_counter() + seconds
        return self.run_while(lambda: time.perf_counter() < end)

    def _work(self) -> float:
        start = time.perf_counter()
        if self._tensor is not None:
            for _ in range(_LAUNCHES):
                self._tensor.add_(1)
        for _ in range(self._num_rounds):
            sum(range(200))
        return time.perf_counter() - start


def measure(config: ResolvedConfig, manifests: Sequence[AdapterManifest], num_threads: int) -> dict[str, object]:
    max_blocks = config.user.adapter_host_bytes // config.block_bytes
    dtype = _DTYPES[config.dtype]
    blocks = HostBlocks(config.block_elements, dtype, max_blocks=max_blocks, is_pinned=config.device == "cuda")
    loop, clock, own = StepLoop(config.device), StageClock(), threading.local()
    alone = loop.run_for(1.0)

    def start_thread() -> None:
        torch.set_num_threads(1)
        own.reader = AdapterReader(blocks, dtype)

    def read(manifest: AdapterManifest) -> float:
        start = time.thread_time()
        own.reader.read(manifest, plan_layout(manifest, config.shape, config.block_elements))
        return time.thread_time() - start

    with clock.running(), ThreadPoolExecutor(num_threads, initializer=start_thread) as threads:
        start = time.perf_counter()
        reads: list[Future[float]] = [threads.submit(read, manifest) for manifest in manifests]
        beside = loop.run_while(lambda: not all(one.done() for one in reads))
        seconds = time.perf_counter() - start
    count = len(manifests)
    return {
        "threads": num_threads,
        "adapters_per_s": round(count / seconds, 1),
        "cpu_ms": round(1e3 * sum(one.result() for one in reads) / count, 2),
        "wall_ms_of": {name: round(1e3 * spent / count, 2) for name, spent in clock.wall.items()},
        "cpu_ms_of": {name: round(1e3 * spent / count, 2) for name, spent in clock.processor.items()},
        "step_ms_alone": _summary(alone),
        "step_ms_beside": _summary(beside),
    }


def _summary(spent: Sequence[float]) -> dict[str, float]:
    return {
        "mean": round(statistics.fmean(spent), 2),
        "p99": round(percentile(list(spent), 0.99), 2),
        "max": round(max(spent), 2),
    }


def main() -> None:
    args = _parser().parse_args()
    sys.setswitchinterval(args.switch_ms / 1000)
    config = engine_config(args, with_adapters=True)
    if args.make:
        modules = modules_named(args.modules)
        write_adapters(
            args.adapters, config.shape, args.make, lora_rank=args.rank, modules=modules, num_files=args.make
        )
    folders = [folder for folder in sorted(args.adapters.iterdir()) if folder.name.isdigit()][: args.count]
    start = time.perf_counter()
    manifests = [read_adapter(folder, config.shape, config.user.max_lora_rank) for folder in folders]
    print(json.dumps({"register_ms": round(1e3 * (time.perf_counter() - start) / len(folders), 3)}), flush=True)
    for num_threads in args.threads:
        print(json.dumps(measure(config, manifests, num_threads)), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, required=True, help="with a folder 0000, 0001, ... an adapter")
    parser.add_argument("--make", type=int, default=0, help="write so many adapters first")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--modules", default="attention")
    parser.add_argument("--count", type=int, default=64, help="adapters to read")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--switch-ms", type=float, default=5.0, help="the interpreter's switch interval")
    add_engine_options(parser)
    return parser


if __name__ == "__main__":
    main()
