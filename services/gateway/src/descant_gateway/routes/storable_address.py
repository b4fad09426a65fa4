"""The guard of all routes that ask the database: what a request's address says is something that it can hold."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from descant_gateway.storable import MAX_QUOTED, is_storable, require_storable
from descant_wire.errors import not_found


async def require_storable_address(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """404 for an id or name that nothing can have, as for any that nothing has; 400 for an option, by its name.

    A coroutine, though it waits for nothing: see `access.deny_by_default`.
    """
    for named in connection.path_params.values():
        if not is_storable(named):
            raise not_found(f"There is nothing by the name of {str(named)[:MAX_QUOTED]!r} here.")
    for option, text in connection.query_params.multi_items():
        require_storable(text, option)
