"""Why a backend did not answer, and what follows from it."""

import msgspec
from msgspec import Struct

from descant_gateway.call import Headers
from descant_gateway.catalogue.routing_policy import FailureKind
from descant_wire.errors import ApiError, service_unavailable


class Refusal(Struct, frozen=True):
    """A backend's own answer to a request that it does not take; the client gets it as it is."""

    status: int
    headers: Headers
    body: bytes


class BackendFailed(Exception):
    """One backend, or all of a model, did not answer a request, and the client has had nothing yet.

    `answer` is what the client is told if nobody else serves it. `may_repeat`: the backend has not begun, so another
    one of the same model may take it; if it had begun, the request itself may be what breaks backends.
    """

    def __init__(self, kind: FailureKind, answer: ApiError | Refusal, *, may_repeat: bool, why: str) -> None:
        super().__init__(why)
        self.kind = kind
        self.answer = answer
        self.may_repeat = may_repeat

    @property
    def blames_backend(self) -> bool:
        """Whether it says something against the backend's health."""
        return not isinstance(self.answer, Refusal)


def nobody_serves(model: str, kind: FailureKind, why: str) -> BackendFailed:
    """503: the request was not begun anywhere."""
    answer = service_unavailable(
        f"No backend for the model {model!r} takes requests right now. Try again shortly.",
        retry_after_s=1,
        code="no_healthy_backend",
    )
    return BackendFailed(kind, answer, may_repeat=True, why=why)


def add_to_answer(failure: BackendFailed, remark: ApiError) -> BackendFailed:
    """The same failure, whose answer says besides why a fallback was not taken."""
    if isinstance(failure.answer, Refusal):
        return failure
    detail = msgspec.structs.replace(failure.answer.detail, message=f"{failure.answer} {remark}")
    answer = ApiError(failure.answer.status, detail, retry_after_s=failure.answer.retry_after_s)
    return BackendFailed(failure.kind, answer, may_repeat=failure.may_repeat, why=str(failure))
