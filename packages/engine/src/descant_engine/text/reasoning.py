"""Where a model thinks before it answers: its text cut into reasoning and content.

Qwen 3 and DeepSeek-R1 both write <think> ... </think>. Qwen 3 writes both tags itself, if it thinks; the template
of DeepSeek-R1, and of Qwen 3's thinking models, ends the prompt with <think>, so that the output begins inside.
"""

from enum import Enum
from typing import NamedTuple

from descant_engine.text.tool_calls.events import UntilMarker


class ReasoningForm(NamedTuple):
    begin: str
    end: str
    always: bool
    """An output without any tag is reasoning that broke off, and not an answer without reasoning."""


THINK_TAGS = ReasoningForm("<think>", "</think>", always=False)
FORMS: dict[str, ReasoningForm] = {"qwen3": THINK_TAGS, "deepseek_r1": THINK_TAGS._replace(always=True)}
"""By the names that vLLM's --reasoning-parser takes."""


class Split(NamedTuple):
    reasoning: str
    content: str


class _In(Enum):
    START = "start"
    REASONING = "reasoning"
    GAP = "gap"
    """Behind the end of reasoning, before the answer's first character."""
    CONTENT = "content"


class ReasoningSplitter:
    """For one output; what it gives, joined, does not depend on how the text is cut into pieces."""

    def __init__(self, form: ReasoningForm, *, starts_inside: bool) -> None:
        """`starts_inside`: the prompt ended with the opening tag."""
        self._form = form
        self._starts_inside = starts_inside or form.always
        self._place = _In.START
        self._held = ""
        self._reasoning = UntilMarker(form.end)
        self._is_blank = True
        """There is no reasoning yet, but perhaps whitespace."""

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._place is _In.REASONING or (self._place is _In.START and self._starts_inside)

    def feed(self, text: str) -> Split:
        self._held += text
        if self._place is _In.START and not self._decide():
            return Split("", "")
        reasoning = self._take_reasoning() if self._place is _In.REASONING else ""
        return Split(reasoning, self._take_content())

    def finish(self) -> Split:
        """What was held back: no more text will come."""
        held, self._held = self._held, ""
        if self.is_reasoning:
            return Split(held + self._reasoning.finish().rstrip(), "")
        return Split("", "" if self._place is _In.GAP else held)

    def _decide(self) -> bool:
        text = self._held.lstrip()
        if not text or (len(text) < len(self._form.begin) and self._form.begin.startswith(text)):
            return False
        if text.startswith(self._form.begin):
            self._place, self._held = _In.REASONING, text.removeprefix(self._form.begin)
        elif self._starts_inside:
            self._place, self._held = _In.REASONING, text
        else:
            self._place = _In.CONTENT
        return True

    def _take_reasoning(self) -> str:
        if self._is_blank:
            self._held = self._held.lstrip()
            self._is_blank = not self._held
        reasoning, behind = self._reasoning.feed(self._held)
        self._held = behind or ""
        if behind is not None:
            self._place = _In.GAP
        return reasoning

    def _take_content(self) -> str:
        if self._place is _In.GAP:
            self._held = self._held.lstrip()
            if self._held:
                self._place = _In.CONTENT
        if self._place is not _In.CONTENT:
            return ""
        content, self._held = self._held, ""
        return content


class ReasoningCounter:
    """How many of one output's tokens are reasoning, its tags included."""

    def __init__(self, form: ReasoningForm, *, starts_inside: bool) -> None:
        self.num_tokens = 0
        self._begin, self._end = form.begin.encode(), form.end.encode()
        self._tail = b""
        self._is_open = starts_inside or form.always
        self._is_over = False
        self._num_seen = 0

    def feed(self, token: bytes) -> None:
        """The bytes of the next token."""
        if self._is_over:
            return
        self._num_seen += 1
        self._tail = (self._tail + token)[-len(self._end) - len(token) :]
        if not self._is_open and not self._opens():
            return
        self.num_tokens = self._num_seen
        self._is_over = self._end in self._tail

    def _opens(self) -> bool:
        start = self._tail.lstrip()
        self._is_open = start.startswith(self._begin)
        self._is_over = bool(start) and not self._begin.startswith(start) and not self._is_open
        return self._is_open


def form_for(chat_template: str | None) -> ReasoningForm | None:
    """None for a model that is not known to think."""
    return THINK_TAGS if chat_template is not None and THINK_TAGS.end in chat_template else None
