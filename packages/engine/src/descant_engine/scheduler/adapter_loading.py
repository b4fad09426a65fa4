"""Brings the adapters that requests wait for towards the device, ahead of their turn."""

from descant_engine.cache.adapter_cache import AdapterCache, Readiness
from descant_engine.request import Request
from descant_engine.scheduler.queue import order
from descant_engine.scheduler.step_draft import StepDraft
from descant_engine.scheduler.waiting import WaitingRequests

LOOK_AHEAD = 128
"""Lines looked at in a step, so that its cost does not grow with the queue. From file to batch an adapter takes three
steps, each of which may admit some dozens."""
PATIENCE_STEPS = 32
"""In so many steps others may be admitted past a request whose adapter finds no room in the pool; from then on nobody
who came later is, until enough has drained. Running requests are never preempted for an adapter."""
LONG_PATIENCE_STEPS = 8 * PATIENCE_STEPS
"""The same for others whose shares have had less: they need not make up for what the request's own share takes."""


class AdapterLoading:
    """Decides for whom room is made, in the order of `WaitingRequests.parked`."""

    def __init__(self, adapters: AdapterCache, waiting: WaitingRequests) -> None:
        self._adapters = adapters
        self._waiting = waiting
        self._impatient: Request | None = None
        self._lacks_slot = False
        """What the impatient one waits for: a slot, or blocks."""

    def bring(self, step: StepDraft, blocked: Request | None, num_spare_blocks: int) -> None:
        """Starts what can be started. Nothing goes into the pool past `blocked`, a request that waits for room for its
        tokens, nor past a request whose adapter waits for room. Who is out of patience comes first of his priority: he
        keeps others from being admitted, so he must not wait for one of them.
        """
        self._impatient = None
        into_pool = True
        readiness: dict[str, Readiness] = {}
        parked = sorted(self._waiting.parked(LOOK_AHEAD), key=lambda r: (r.spec.priority, not _is_impatient(r)))
        impatient = max((r.spec.priority for r in parked if _is_impatient(r)), default=None)
        for request in parked:
            digest = request.spec.adapter_digest
            assert digest is not None
            if digest not in readiness:
                is_allowed = into_pool and (blocked is None or order(request) < order(blocked))
                readiness[digest] = self._adapters.bring(
                    digest,
                    readiness.keys(),
                    num_spare_blocks,
                    into_pool=is_allowed,
                    evict_wanted=_is_impatient(request) or _goes_before(request, impatient),
                )
            if readiness[digest] >= Readiness.NO_ROOM:
                into_pool = False
                self._age(request, step, lacks_slot=readiness[digest] is Readiness.NO_SLOT)

    def closes_admission_to(self, request: Request) -> bool:
        """Whether room must be left to a request that came earlier and was overtaken often enough."""
        if self._impatient is None or order(self._impatient) > order(request):
            return False
        if self._lacks_slot and request.spec.adapter_digest is None:
            return False
        is_ahead = request.share.is_ahead_of(self._impatient.share)
        return not is_ahead or self._impatient.num_steps_overtaken >= LONG_PATIENCE_STEPS

    @property
    def is_open_to_base(self) -> bool:
        """Whether requests without an adapter keep nobody from what he waits for."""
        return self._impatient is None or self._lacks_slot

    def _age(self, request: Request, step: StepDraft, *, lacks_slot: bool) -> None:
        request.num_steps_overtaken += step.admits_later_than(request)
        if self._impatient is None and _is_impatient(request):
            self._impatient, self._lacks_slot = request, lacks_slot


def _goes_before(request: Request, priority: int | None) -> bool:
    """Whether a request out of patience, of this priority if there is any, waits for `request` to find room."""
    return priority is not None and request.spec.priority < priority


def _is_impatient(request: Request) -> bool:
    return request.num_steps_overtaken >= PATIENCE_STEPS
