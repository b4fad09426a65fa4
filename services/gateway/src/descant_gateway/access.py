"""Deny by default: every route says who may call it, and a route that says nothing is closed to everybody."""

from enum import StrEnum
from typing import Any, Final

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from descant_gateway.authenticate import Caller, authenticate
from descant_gateway.pipeline import Gateway
from descant_wire.errors import permission_denied

OPT: Final = "access"
"""The name of the route option that holds an `Access`."""


class Access(StrEnum):
    PUBLIC = "public"
    """Health and metrics only: a test holds the list."""
    KEY = "key"
    """Any valid key; the handler finds the `Caller` in its connection's state."""
    PIPELINE = "pipeline"
    """`pipeline.serve` authenticates, as its first step."""
    ADMIN = "admin"
    """The admin routes' own guard checks the admin key."""


async def deny_by_default(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """The guard on the app. Decides on the route handler that was found, never on the text of the URL.

    A coroutine, though it waits for nothing: Litestar sends a plain function through a thread for every request.
    """
    match handler.opt.get(OPT):
        case Access.PUBLIC | Access.PIPELINE | Access.ADMIN:
            return
        case Access.KEY:
            connection.state.caller = _caller(connection)
        case _:
            raise permission_denied("This route is not open to anybody.")


def _caller(connection: ASGIConnection[Any, Any, Any, Any]) -> Caller:
    gateway: Gateway = connection.app.state.gateway
    authorization = connection.headers.get("authorization")
    address = connection.client.host if connection.client else None
    return authenticate(
        authorization.encode("latin-1") if authorization else None, address, gateway.feed.current, gateway.pepper
    )
