"""What a backend is sent: its own name of the model, the usage asked for, and nothing that the client may not set."""

from functools import lru_cache
from typing import Final

import msgspec
from msgspec import Raw
from yarl import URL

from descant_gateway.admitted_call import AdmittedCall
from descant_gateway.catalogue.snapshot import Backend
from descant_gateway.request import InferenceRequest

FORWARDED_REQUEST_HEADERS: Final = (b"traceparent", b"tracestate")
"""Besides what is set here. Only these pass, so that no client reaches a backend's internal headers."""

_options_decoder = msgspec.json.Decoder(dict[str, Raw])


def rewrite_body(request: InferenceRequest, upstream_name: str) -> bytes:
    """The body for the backend: its own name of the model, and the usage chunk asked for in every stream.

    The values of all other fields are the client's bytes. The object around them is written anew even if nothing
    changes, so that a field that is given twice reaches the backend once, with the value that was decided on; a compact
    body, as clients write it, comes out the same.
    """
    members = dict(request.members)
    if request.model != upstream_name:
        members["model"] = Raw(msgspec.json.encode(upstream_name))
    if request.stream and not request.include_usage and request.kind.has_usage_chunk:
        options = _options_decoder.decode(members["stream_options"]) if _has_options(members) else {}
        options["include_usage"] = Raw(b"true")
        members["stream_options"] = Raw(msgspec.json.encode(options))
    return msgspec.json.encode(members)


def _has_options(members: dict[str, Raw]) -> bool:
    return "stream_options" in members and bytes(members["stream_options"]) != b"null"


def identity_headers(admitted: AdmittedCall, backend: Backend) -> dict[str, str]:
    """Which request this is. A backend in the house is told whose, too. The client's key stays here."""
    headers = {"x-request-id": admitted.call.request_id}
    if backend.is_external:
        return headers
    headers |= admitted.identity.headers(admitted.ticket.charge_id)
    for name in FORWARDED_REQUEST_HEADERS:
        value = admitted.call.headers.get(name)
        if value is not None:
            headers[name.decode()] = value.decode("latin-1")
    return headers


@lru_cache(maxsize=1024)
def url_of(base_url: str, path: str) -> URL:
    return URL(base_url + path)
