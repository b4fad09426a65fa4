"""A span for each admitted request, and its place in the trace handed on to the backend."""

from types import TracebackType
from typing import Self

from descant_gateway.admitted_call import AdmittedCall
from descant_gateway.errors import ClientLeft
from descant_wire.tracing import OPERATIONS, Tracer


class RequestSpan:
    """`with` it around the relay. The backend is told of this span in place of the client's."""

    __slots__ = ("_admitted", "_span")

    def __init__(self, tracer: Tracer, admitted: AdmittedCall) -> None:
        self._admitted = admitted
        headers = admitted.call.headers
        endpoint, sender = admitted.call.endpoint, headers.get(b"traceparent", b"").decode("latin-1")
        operation = OPERATIONS.get(endpoint, endpoint.rpartition("/")[2])
        self._span = tracer.start(operation, admitted.model.name, sender, is_client=True)
        headers[b"traceparent"] = self._span.traceparent.encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        meter = self._admitted.meter
        attributes: dict[str, str | int] = {"descant.backend": meter.backend}
        if meter.model is not None:
            attributes["gen_ai.response.model"] = meter.model.target or meter.model.name
        if meter.usage is not None:
            attributes["gen_ai.usage.input_tokens"] = meter.usage.prompt_tokens
            attributes["gen_ai.usage.output_tokens"] = meter.usage.completion_tokens
        if meter.status:
            attributes["http.response.status_code"] = meter.status
        self._span.end(attributes, self._error(exc_type))

    def _error(self, exc_type: type[BaseException] | None) -> str:
        if exc_type is not None:
            return "client_left" if issubclass(exc_type, ClientLeft) else exc_type.__name__
        return "upstream_failed" if self._admitted.meter.failure else ""
