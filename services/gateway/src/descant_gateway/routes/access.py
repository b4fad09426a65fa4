"""Deny by default: every route says who may call it and how often. `require_declarations` lets no app start without."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final

from litestar import Litestar
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.handlers.http_handlers.base import HTTPRouteHandler
from litestar.routes import BaseRoute
from msgspec import Struct

from descant_gateway.identity.authenticate import Caller, authenticate, permitted_endpoint
from descant_gateway.identity.roles import Level, Permission, Role
from descant_gateway.pipeline import Gateway
from descant_wire.errors import permission_denied

OPT: Final = "access"
"""The name of the route option that holds an `Access`."""
LIMIT: Final = "limit"
"""The name of the route option that holds a `Rate`, or says with `RateLimitedBy` who limits."""
PERMISSION: Final = "permission"
"""The name of the route option that holds a `Permission`: of admin routes."""


class Access(StrEnum):
    PUBLIC = "public"
    """Health, metrics, signing in and the API's description only: a test holds the list."""
    KEY = "key"
    """Any valid key with the endpoint's scope; the handler finds the `Caller` in its connection's state."""
    PIPELINE = "pipeline"
    """`pipeline.serve` authenticates, as its first step."""
    ADMIN = "admin"
    """Whoever has the route's `Permission`: the admin router's own guard finds out."""


class RateLimitedBy(StrEnum):
    PIPELINE = "pipeline"
    """The limits on the path of the key, reserved in Valkey."""


class Rate(Struct, frozen=True):
    """How often one caller may come: a key or principal where the route knows one, else an address."""

    per_minute: int


def needs(role: Role, level: Level = Level.TEAM) -> dict[str, Permission]:
    """The option of an admin route for those who have this role at this level or above."""
    return {PERMISSION: Permission(role, level)}


class Undeclared(Exception):
    """A route says not who may call it, or not how often."""


async def deny_by_default(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """The guard on the app. Decides on the route handler that was found, never on the text of the URL.

    A coroutine, though it waits for nothing: Litestar sends a plain function through a thread for every request.
    """
    match handler.opt.get(OPT):
        case Access.PIPELINE | Access.ADMIN:
            return
        case Access.PUBLIC:
            take_rate(connection, handler, client_address(connection) or "")
        case Access.KEY:
            caller = _caller(connection)
            permitted_endpoint(caller, connection.scope["path"])
            take_rate(connection, handler, caller.key.public_id)
            connection.state.caller = caller
        case _:
            raise permission_denied("This route is not open to anybody.")


def take_rate(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler, caller: str) -> None:
    """Counts the call against the route's own rate. Raises a 429."""
    rate = handler.opt.get(LIMIT)
    if isinstance(rate, Rate):
        connection.app.state.throttle.take(handler.handler_name, caller, rate.per_minute)


def client_address(connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    address: str | None = connection.app.state.proxies.client_address(connection.scope)
    return address


def require_declarations(app: Litestar) -> None:
    """Raises Undeclared with every route that lacks a declaration: an app with one does not start."""
    problems = [
        f"{'|'.join(sorted(methods))} {path}: {missing}"
        for path, methods, handler in walk(app.routes)
        if (missing := _missing(handler))
    ]
    if problems:
        raise Undeclared("Routes that nobody said enough about:\n" + "\n".join(problems))


def walk(routes: Iterable[BaseRoute]) -> Iterable[tuple[str, set[str], BaseRouteHandler]]:
    """Each path with the methods and the handler that serves them; Litestar's own answers to OPTIONS left out."""
    for route in routes:
        handlers = getattr(route, "route_handlers", None) or [route.route_handler]  # type: ignore[attr-defined]
        for handler in handlers:
            methods = {str(it) for it in handler.http_methods} if isinstance(handler, HTTPRouteHandler) else {"*"}
            if methods != {"OPTIONS"}:
                yield route.path_format, methods, handler


def _missing(handler: BaseRouteHandler) -> str | None:
    opt = handler.opt
    if not isinstance(opt.get(OPT), Access):
        return "who may call it (opt 'access')"
    if not isinstance(opt.get(LIMIT), (Rate, RateLimitedBy)):
        return "how often (opt 'limit')"
    if opt[OPT] is Access.ADMIN and not isinstance(opt.get(PERMISSION), Permission):
        return "the permission that it needs (opt 'permission')"
    return None


def _caller(connection: ASGIConnection[Any, Any, Any, Any]) -> Caller:
    gateway: Gateway = connection.app.state.gateway
    authorization = connection.headers.get("authorization")
    return authenticate(
        authorization.encode("latin-1") if authorization else None,
        client_address(connection),
        gateway.feed.current,
        gateway.pepper,
    )
