"""One row of docs/compatibility.md: an option of an API, what becomes of it, and the check that proves it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .asking import Asking, assert_refused
from .stack import Stack


class Api(StrEnum):
    CHAT = "POST /v1/chat/completions"
    COMPLETIONS = "POST /v1/completions"
    EMBEDDINGS = "POST /v1/embeddings"
    RERANK = "POST /v1/rerank"
    SCORE = "POST /v1/score"
    RESPONSES = "POST /v1/responses"
    MESSAGES = "POST /v1/messages"
    COUNT_TOKENS = "POST /v1/messages/count_tokens"
    FILES = "POST /v1/files"
    BATCHES = "POST /v1/batches"
    TOKENIZE = "POST /tokenize"
    DETOKENIZE = "POST /detokenize"


class Status(StrEnum):
    WORKS = "works"
    """As its reference says."""
    REFUSED = "refused"
    """400, whose message and `param` name it."""
    DIFFERS = "differs"
    """Accepted, and something else than the reference's happens; the note says what."""


Check = Callable[[Stack], None]


@dataclass(frozen=True, slots=True)
class Option:
    api: Api
    name: str
    status: Status
    note: str
    check: Check = field(repr=False)


@dataclass(frozen=True)
class OptionTable:
    """Collects the options of one API."""

    api: Api
    rows: list[Option] = field(default_factory=list)

    def add(self, name: str, status: Status, note: str, check: Check) -> None:
        self.rows.append(Option(self.api, name, status, note, check))

    def works(self, name: str, note: str = "") -> Callable[[Check], Check]:
        return self._entry(name, Status.WORKS, note)

    def differs(self, name: str, note: str) -> Callable[[Check], Check]:
        return self._entry(name, Status.DIFFERS, note)

    def _entry(self, name: str, status: Status, note: str) -> Callable[[Check], Check]:
        def take(check: Check) -> Check:
            self.add(name, status, note, check)
            return check

        return take


@dataclass(frozen=True)
class GenerationTable:
    """Options that chats and texts have in common: each check runs on both endpoints."""

    chat: OptionTable
    completions: OptionTable

    def works(self, name: str, note: str = "") -> "Callable[[Callable[[Asking], None]], Callable[[Asking], None]]":
        return self._entry(name, Status.WORKS, note)

    def differs(self, name: str, note: str) -> "Callable[[Callable[[Asking], None]], Callable[[Asking], None]]":
        return self._entry(name, Status.DIFFERS, note)

    def refused(self, name: str, value: object, note: str = "", *, harmless: tuple[object, ...] = ()) -> None:
        """`harmless`: values that ask for what happens anyway, and are taken."""
        self._entry(name, Status.REFUSED, note)(lambda asking: refuses(asking, name, value, harmless))

    def _entry(
        self, name: str, status: Status, note: str
    ) -> "Callable[[Callable[[Asking], None]], Callable[[Asking], None]]":
        def take(check: Callable[[Asking], None]) -> Callable[[Asking], None]:
            self.chat.add(name, status, note, lambda stack: check(stack.chats))
            self.completions.add(name, status, note, lambda stack: check(stack.completions))
            return check

        return take


def refuses(asking: Asking, name: str, value: object, harmless: tuple[object, ...] = ()) -> None:
    assert_refused(asking.whole, name, value)
    for taken in harmless:
        assert asking.whole(**{name: taken}).text == asking.whole().text


def changes_nothing(asking: Asking, **options: Any) -> None:
    """The answer is the one that comes without them."""
    assert asking.ask(**options).choices == asking.ask().choices
