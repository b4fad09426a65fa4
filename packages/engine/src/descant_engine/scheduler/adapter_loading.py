"""Brings the adapters that requests wait for towards the device, ahead of their turn."""

from descant_engine.cache.adapter_cache import AdapterCache, Readiness
from descant_engine.request import Request
from descant_engine.scheduler.queue import order
from descant_engine.scheduler.step_draft import StepDraft
from descant_engine.scheduler.waiting import WaitingRequests

LOOK_AHEAD = 64
"""Lines looked at in a step, so that its cost does not grow with the queue. Far more than loads can be under way."""
PATIENCE_STEPS = 32
"""In so many steps others may be admitted past a request whose adapter finds no room in the pool; from then on nobody
who came later is, until enough has drained. Running requests are never preempted for an adapter."""


class AdapterLoading:
    """Decides for whom room is made, in the order of `WaitingRequests.parked`."""

    def __init__(self, adapters: AdapterCache, waiting: WaitingRequests) -> None:
        self._adapters = adapters
        self._waiting = waiting
        self._impatient: Request | None = None

    def bring(self, step: StepDraft, blocked: Request | None, num_spare_blocks: int) -> None:
        """Starts what can be started. Nothing goes into the pool past `blocked`, a request that waits for room for its
        tokens, nor past a request whose adapter waits for room.
        """
        self._impatient = None
        into_pool = True
        readiness: dict[str, Readiness] = {}
        for request in self._waiting.parked(LOOK_AHEAD):
            digest = request.spec.adapter_digest
            assert digest is not None
            if digest not in readiness:
                is_allowed = into_pool and (blocked is None or order(request) < order(blocked))
                readiness[digest] = self._adapters.bring(
                    digest,
                    readiness.keys(),
                    num_spare_blocks,
                    into_pool=is_allowed,
                    evict_wanted=_is_impatient(request),
                )
            if readiness[digest] is Readiness.NO_ROOM:
                into_pool = False
                self._age(request, step)

    def closes_admission_to(self, request: Request) -> bool:
        """Whether room must be left to a request that came earlier and was overtaken often enough."""
        return self._impatient is not None and order(self._impatient) < order(request)

    def _age(self, request: Request, step: StepDraft) -> None:
        request.num_steps_overtaken += step.admits_later_than(request)
        if self._impatient is None and _is_impatient(request):
            self._impatient = request


def _is_impatient(request: Request) -> bool:
    return request.num_steps_overtaken >= PATIENCE_STEPS
