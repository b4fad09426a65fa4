"""How a chat's output is read: reasoning, content and calls told apart, as the text arrives."""

import secrets
import uuid
from dataclasses import dataclass
from typing import NamedTuple

from descant_engine.outputs import RequestOutput
from descant_engine.text.reasoning import ReasoningCounter, ReasoningForm, ReasoningSplitter
from descant_engine.text.tokenizer import Tokenizer
from descant_engine.text.tool_calls.events import Arguments, CallStarted, Content, ToolCallParser, ToolEvent
from descant_engine.text.tool_calls.parsers import GENERIC_JSON, MISTRAL, ToolCallForm


class Reasoning(NamedTuple):
    text: str


class NewCall(NamedTuple):
    place: int
    """Among the message's calls."""
    id: str
    name: str


class MoreArguments(NamedTuple):
    place: int
    text: str


Piece = Reasoning | Content | NewCall | MoreArguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is to be looked for in an output. The default looks for nothing: all is content."""

    reasoning: ReasoningForm | None = None
    starts_in_reasoning: bool = False
    tools: ToolCallForm | None = None
    """None if no tool may be called."""
    call_names: frozenset[str] | None = None
    """What calls begin with, where a grammar sees to their form; None if the model writes them as it likes."""
    named_tool: str | None = None
    """The whole answer is this tool's arguments."""
    is_single_call: bool = False
    """Calls after the first are dropped."""

    @property
    def is_plain(self) -> bool:
        return self.reasoning is None and self.tools is None and self.named_tool is None


class ChatReader:
    """For one choice of an answer. Fed with its outputs in order; the last one has a finish reason."""

    def __init__(self, reading: Reading, tokenizer: Tokenizer) -> None:
        self._reading, self._tokenizer = reading, tokenizer
        self._splitter, self._counter = _reasoning(reading)
        self._parser = _parser(reading)
        self._num_calls = 0

    @property
    def has_called(self) -> bool:
        return self._num_calls > 0

    @property
    def num_reasoning_tokens(self) -> int:
        return 0 if self._counter is None else self._counter.num_tokens

    def read(self, output: RequestOutput) -> list[Piece]:
        self._count(output)
        reasoning, content = ("", output.text) if self._splitter is None else self._splitter.feed(output.text)
        is_last = output.finish_reason is not None
        if is_last and self._splitter is not None:
            last = self._splitter.finish()
            reasoning, content = reasoning + last.reasoning, content + last.content
        pieces: list[Piece] = [Reasoning(reasoning)] if reasoning else []
        return pieces + self._pieces(self._events(content, is_last=is_last))

    def _count(self, output: RequestOutput) -> None:
        if self._counter is not None:
            for token_id in output.token_ids:
                self._counter.feed(self._tokenizer.token_bytes(token_id, skip_special_tokens=False))

    def _events(self, content: str, *, is_last: bool) -> list[ToolEvent]:
        if self._parser is None:
            return [Content(content)] if content else []
        events = self._parser.feed(content) if content else []
        return events + self._parser.finish() if is_last else events

    def _pieces(self, events: list[ToolEvent]) -> list[Piece]:
        pieces: list[Piece] = []
        for event in events:
            if isinstance(event, Content):
                pieces.append(event)
                continue
            if isinstance(event, CallStarted):
                self._num_calls += 1
            if self._num_calls > 1 and self._reading.is_single_call:
                continue
            index = self._num_calls - 1
            if isinstance(event, CallStarted):
                pieces.append(NewCall(index, self._new_id(), event.name))
            else:
                pieces.append(MoreArguments(index, event.text))
        return pieces

    def _new_id(self) -> str:
        # Mistral's template takes no others.
        return secrets.token_hex(5)[:9] if self._reading.tools is MISTRAL else f"call_{uuid.uuid4().hex}"


class NamedCall:
    """An output that is nothing but one tool's arguments."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_started = False

    def feed(self, text: str) -> list[ToolEvent]:
        started: list[ToolEvent] = [] if self._is_started else [CallStarted(self._name)]
        self._is_started = True
        return [*started, Arguments(text)]

    def finish(self) -> list[ToolEvent]:
        return []


def _reasoning(reading: Reading) -> tuple[ReasoningSplitter | None, ReasoningCounter | None]:
    form, starts_inside = reading.reasoning, reading.starts_in_reasoning
    if form is None:
        return None, None
    return (
        ReasoningSplitter(form, starts_inside=starts_inside),
        ReasoningCounter(form, starts_inside=starts_inside),
    )


def _parser(reading: Reading) -> ToolCallParser | None:
    if reading.named_tool is not None:
        return NamedCall(reading.named_tool)
    return None if reading.tools is None else reading.tools.parser(reading.call_names)


REQUIRED_CALLS = GENERIC_JSON
"""The form in which the grammar of required calls has them written, whatever the model's own."""
