"""Wraps methods of the engine's classes for the time of a measurement: the engine itself carries no clocks."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from types import ModuleType
from typing import Any, NamedTuple

from descant_engine.runner.model_runner import ModelRunner, PendingStep
from descant_engine.scheduler.plan import StepPlan
from descant_engine.scheduler.scheduler import Scheduler

Function = Callable[..., Any]


class Method(NamedTuple):
    owner: type | ModuleType
    name: str


SCHEDULE = Method(Scheduler, "schedule")
HOST_PARTS: dict[str, Method] = {
    "schedule": SCHEDULE,
    "prepare and launch": Method(ModelRunner, "forward"),
    "launch samples": Method(ModelRunner, "sample"),
    "wait for the device": Method(PendingStep, "result"),
    "update": Method(Scheduler, "update"),
}


@contextmanager
def wrapped(method: Method, wrap: Callable[[Function], Function]) -> Iterator[None]:
    """Inside, `method` is wrap(method), for all objects of its class."""
    original = vars(method.owner)[method.name]
    setattr(method.owner, method.name, wraps(original)(wrap(original)))
    try:
        yield
    finally:
        setattr(method.owner, method.name, original)


@contextmanager
def recorded_plans() -> Iterator[list[StepPlan]]:
    """Every plan that is made inside, in order."""
    plans: list[StepPlan] = []

    def keep(schedule: Function) -> Function:
        def scheduled(*args: object) -> StepPlan:
            plan: StepPlan = schedule(*args)
            plans.append(plan)
            return plan

        return scheduled

    with wrapped(SCHEDULE, keep):
        yield plans


class MethodClock:
    """Seconds spent in each of the named methods while it runs."""

    def __init__(self, parts: Mapping[str, Method] = HOST_PARTS) -> None:
        self._parts = parts
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, method in self._parts.items():
                stack.enter_context(wrapped(method, partial(self._timed, name)))
            yield

    def _timed(self, name: str, method: Function) -> Function:
        def timed(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed
