"""--api-key: a bearer token that opens every route not marked PUBLIC. Deny by default: a new route is closed."""

import hmac
from collections.abc import Sequence
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.types import Guard

from descant_wire.errors import invalid_api_key

PUBLIC = {"public": True}
"""`opt` of a route that needs no key: probes and metrics, which name no request's content."""


def require_api_key(api_keys: Sequence[str]) -> Guard:
    """A guard for the whole app. Compares in constant time, with every key, whatever was sent."""
    expected = [key.encode() for key in api_keys]

    def guard(connection: ASGIConnection[Any, Any, Any, Any], route_handler: BaseRouteHandler) -> None:
        if not expected or route_handler.opt.get("public") is True:
            return
        scheme, _, given = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise invalid_api_key("No API key was given. Send it as `Authorization: Bearer KEY`.")
        # All of them, always: stopping at the first match would tell which key it was.
        matches = [hmac.compare_digest(given.encode(), key) for key in expected]
        if True not in matches:
            raise invalid_api_key("The API key is not valid.")

    return guard
