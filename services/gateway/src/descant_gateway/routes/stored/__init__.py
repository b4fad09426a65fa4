"""Routes for what clients leave with the gateway: files, batches, stored responses. They hold no SQL; `store` does."""

from collections.abc import Callable
from typing import Any, Final

import structlog
from litestar import Request, Response, Router
from litestar.di import Provide
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.routes.access import LIMIT, OPT, Access, Rate
from descant_gateway.routes.storable_address import require_storable_address
from descant_gateway.routes.stored import batches, files, responses
from descant_gateway.routes.stored.bounds import StoreBounds
from descant_gateway.sealing import UnsealError
from descant_gateway.store.errors import NotFound, StoreError
from descant_gateway.store.session import is_outage
from descant_gateway.store.vault import Vaults
from descant_wire.errors import ApiError, invalid_request, not_found, server_error, service_unavailable

_log = structlog.get_logger("descant_gateway.stored")
_OPT: Final = {OPT: Access.KEY, LIMIT: Rate(per_minute=1200)}


def stored_router(engine: AsyncEngine, vaults: Vaults, bounds: StoreBounds, wake: Callable[[], None]) -> Router:
    """`wake`: somebody left a batch or cancelled one."""
    return Router(
        path="/",
        route_handlers=[*files.ROUTES, *batches.ROUTES, *responses.ROUTES],
        guards=[require_storable_address],
        opt=_OPT,
        request_max_body_size=bounds.max_file_bytes + bounds.form_overhead_bytes,
        dependencies={
            "engine": Provide(lambda: engine, sync_to_thread=False),
            "vaults": Provide(lambda: vaults, sync_to_thread=False),
            "bounds": Provide(lambda: bounds, sync_to_thread=False),
            "wake": Provide(lambda: wake, sync_to_thread=False),
        },
        exception_handlers={StoreError: _refuse, SQLAlchemyError: _fail, OSError: _fail, UnsealError: _fail},
    )


def _refuse(_: Request[Any, Any, Any], error: StoreError) -> Response[bytes]:
    return _told(not_found(str(error)) if isinstance(error, NotFound) else invalid_request(str(error)))


def _fail(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    if is_outage(error):
        return _told(service_unavailable("The database is away. Try again shortly.", retry_after_s=2))
    _log.error("a request failed", path=request.url.path, exc_info=error)
    return _told(server_error())


def _told(error: ApiError) -> Response[bytes]:
    return Response(error.body, status_code=error.status, headers=error.headers, media_type="application/json")
