"""Who may administer: the holder of the admin key, which the configuration gives."""

from collections.abc import Callable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from descant_gateway.config import Secret
from descant_wire.errors import invalid_api_key

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], None]


def require_admin_key(admin_key: Secret) -> Guard:
    """A guard that lets only `Authorization: Bearer <admin key>` pass; it compares in constant time."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        scheme, _, presented = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not admin_key.matches(presented.strip()):
            raise invalid_api_key("The admin API needs the admin key: 'Authorization: Bearer <DESCANT_ADMIN_KEY>'.")

    return guard
