"""Takes the time of steps, whether or not they are planned ahead."""

from descant_engine.speculation.draft_costs import DraftCosts, StepKind


class StepClock:
    """A step's time is from the result before it to its own: then nothing is counted twice where steps overlap, and
    what the host does between them is counted where they do not."""

    def __init__(self, costs: DraftCosts) -> None:
        self._costs = costs
        self._launched: dict[int, tuple[StepKind, float]] = {}
        """Step id -> what is measured, and when it was planned."""
        self._last_result: float | None = None
        """None if there has been nothing to do since."""

    def launch(self, step_id: int, kind: StepKind | None, now: float) -> None:
        """`kind` None: the step is not measured."""
        if kind is not None:
            self._launched[step_id] = kind, now

    def stop(self) -> None:
        """There is nothing to do."""
        self._last_result = None

    def arrive(self, step_id: int, now: float) -> float | None:
        """A step's result is there. Returns the seconds it took, if it is measured."""
        kind, planned = self._launched.pop(step_id, (None, 0.0))
        began, self._last_result = self._last_result, now
        if kind is None:
            return None
        seconds = now - (planned if began is None else began)
        self._costs.note(kind, seconds)
        return seconds
