"""The routes that reach a model. Raw ASGI handlers: `pipeline.serve` answers by itself, streaming or not."""

from typing import Any

import structlog
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from descant_gateway.call import Call
from descant_gateway.endpoints import ENDPOINTS
from descant_gateway.errors import ClientLeft
from descant_gateway.pipeline import Gateway, serve
from descant_gateway.routes.access import LIMIT, OPT, Access, RateLimitedBy
from descant_wire.errors import ApiError, method_not_allowed, server_error

PATHS = list(ENDPOINTS)

_log = structlog.get_logger("descant_gateway.inference")


class _Handler(ASGIRouteHandler):
    async def authorize_connection(self, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        """As Litestar's, which copies the handler for every guard of every request."""
        for guard in self.resolve_guards():
            await guard(connection, self)  # type: ignore[misc]


@_Handler(PATHS, opt={OPT: Access.PIPELINE, LIMIT: RateLimitedBy.PIPELINE}, copy_scope=False)
async def inference(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != ScopeType.HTTP:
        await send({"type": "websocket.close", "code": 1008, "reason": "no websockets here"})
        return
    state = scope["litestar_app"].state
    gateway: Gateway = state.gateway
    dialect, client_address = gateway.dialects.get(scope["path"]), state.proxies.client_address(scope)
    call = Call(scope, receive, send, dialect=dialect, client_address=client_address)
    try:
        if call.method != "POST":
            raise method_not_allowed(f"{call.endpoint} takes POST, not {call.method}.")
        call.require_small_headers()
        await serve(call, gateway)
    except ClientLeft:
        pass
    except ApiError as error:
        await _refuse(call, gateway, error)
    except Exception:
        _log.exception("request failed", request_id=call.request_id)
        await _refuse(call, gateway, server_error())


async def _refuse(call: Call, gateway: Gateway, error: ApiError) -> None:
    gateway.metrics.refused(error.status, error.detail.code)
    if call.is_started:  # a bug struck in the middle of a reply, which can only be cut off
        raise error
    headers = ((name.encode(), value.encode()) for name, value in error.headers.items())
    await call.answer(error.status, ((b"content-type", b"application/json"), *headers), error.body)
