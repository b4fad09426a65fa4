"""The loop: schedule, execute, update. Scheduler and runner meet here and nowhere else."""

from collections import deque

from descant_engine.adapter import AdapterManifest
from descant_engine.config import ResolvedConfig
from descant_engine.request import EngineRequest, TokenDelta
from descant_engine.runner.model_runner import ModelRunner, PendingStep
from descant_engine.scheduler.plan import StepPlan
from descant_engine.scheduler.scheduler import Scheduler
from descant_engine.scheduler.stats import SchedulerStats

ADAPTER_POLL_SECONDS = 0.005


class Engine:
    """Token ids in, token ids out. Not thread-safe: one thread owns it.

    On CUDA one step is planned and launched while the one before still runs, so the device never waits for Python;
    results are applied one step late. On the CPU there is nothing to overlap with.
    """

    def __init__(self, config: ResolvedConfig) -> None:
        self.config = config
        self._runner = ModelRunner(config)
        self._scheduler = Scheduler(config, self._runner.num_blocks, self._runner.num_adapter_slots)
        self._steps_ahead = 1 if config.device == "cuda" else 0
        self._launched: deque[tuple[StepPlan, PendingStep]] = deque()

    @property
    def num_blocks(self) -> int:
        return self._runner.num_blocks

    @property
    def has_work(self) -> bool:
        return bool(self._launched) or self._scheduler.has_unfinished_requests

    def submit(self, request: EngineRequest) -> None:
        """Raises RequestRefused (it can never be served) or QueueFull; both are ValueErrors fit for the client."""
        self._scheduler.add(request)

    def abort(self, request_id: str) -> None:
        self._scheduler.abort(request_id)

    def register_adapter(self, manifest: AdapterManifest) -> None:
        self._scheduler.register_adapter(manifest)

    def remove_adapter(self, digest: str) -> None:
        self._scheduler.remove_adapter(digest)

    def step(self) -> list[TokenDelta]:
        """Launches the next step and applies the oldest one that is due. Returns what became known."""
        plan = self._scheduler.schedule()
        if plan.is_empty and not self._launched:
            # Everything that is left waits for an adapter's file.
            self._runner.wait_for_adapters(ADAPTER_POLL_SECONDS)
        if not plan.is_empty or not self._launched:
            self._launched.append((plan, self._runner.execute(plan)))
        if len(self._launched) > self._steps_ahead or not plan.scheduled:
            plan, launched = self._launched.popleft()
            return self._scheduler.update(plan, launched.result())
        return []

    def stats(self) -> SchedulerStats:
        return self._scheduler.stats()

    def check_integrity(self) -> None:
        """Asserts the bookkeeping's invariants."""
        self._scheduler.check_integrity()

    def close(self) -> None:
        self._runner.close()
