"""Whose a request is: a gateway's signed word, never a client's."""

from dataclasses import replace
from typing import TypeVar

from descant_engine.request import Owner
from descant_server.bodies import HttpRequest
from descant_server.config import ServerConfig
from descant_server.pooling import PoolingCall
from descant_server.translate import EngineCall
from descant_wire.errors import permission_denied, unsupported_field
from descant_wire.internal import Identity, NotSigned, read_identity
from descant_wire.tracing import TRACEPARENT

CallT = TypeVar("CallT", EngineCall, PoolingCall)


def identified(call: CallT, request: HttpRequest, config: ServerConfig) -> CallT:
    """The call as its tenant's, with the gateway's priority.

    Raises:
        ApiError: 403 for headers that only a gateway may send; 400 for a `priority` that a client of an engine with a
            gateway gave itself.
    """
    identity = _identity(request, config.internal_key)
    if config.otlp_endpoint:
        call = replace(call, traceparent=request.headers.get(TRACEPARENT, ""))
    if config.internal_key is not None and not identity.is_signed and call.owner.priority:
        raise unsupported_field("`priority` is the gateway's to say.", param="priority")
    if not identity.is_signed:
        return call
    # The separator divides them: no header can hold it.
    tenant_salt = f"{identity.tenant}\0{call.owner.tenant_salt}"
    return replace(call, owner=Owner(identity.tenant, tenant_salt, identity.priority))


def _identity(request: HttpRequest, internal_key: str | None) -> Identity:
    try:
        return read_identity(request.headers, None if internal_key is None else internal_key.encode())
    except NotSigned as error:
        raise permission_denied(str(error), code="identity_not_signed") from None
