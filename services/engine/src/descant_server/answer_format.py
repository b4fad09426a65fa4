"""What every endpoint's answers have in common: how outputs become one, whole or as events."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from descant_engine import request as engine
from descant_engine.outputs import RequestOutput
from descant_engine.outputs import Usage as EngineUsage
from descant_wire.sampling import FinishReason
from descant_wire.usage import Usage


class AnswerFormat(Protocol):
    """How outputs become an answer of one endpoint. `index` is a choice's place in the answer."""

    @property
    def id(self) -> str:
        """The answer's id."""

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> bytes:
        """The answer in one piece, from each choice's complete output."""

    def opening(self, first: RequestOutput) -> bytes:
        """The events before those of the first output, which is the first sample's of a prompt."""

    def events(self, index: int, output: RequestOutput) -> bytes:
        """The events of one output: none while all of its text is held back."""

    def usage_event(self, usage: Usage) -> bytes:
        """The event after the last output, for those who asked for it."""


def finish_reason_of(output: RequestOutput) -> FinishReason:
    match output.finish_reason:
        case engine.FinishReason.STOP:
            return "stop"
        case engine.FinishReason.LENGTH:
            return "length"
        case _:
            # ERROR never gets here: its stream raises.
            return "abort"


def total_usage(usages: Iterable[EngineUsage]) -> Usage:
    """Of all requests of a call together, from the totals of each. The engine counts a prompt once for its samples."""
    each = list(usages)
    return Usage.of(
        sum(usage.prompt_tokens for usage in each),
        sum(usage.completion_tokens for usage in each),
        sum(usage.cached_tokens for usage in each),
    )
