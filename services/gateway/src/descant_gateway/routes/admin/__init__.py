"""The admin API, /admin/v1: who may use what, and what was used. Its routes hold no SQL; `store` does."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from litestar import Request, Response, Router
from litestar.di import Provide
from litestar.exceptions import ValidationException
from litestar.handlers import BaseRouteHandler
from litestar.types import ExceptionHandlersMap
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.config import GatewayConfig
from descant_gateway.egress.connections import for_webhooks
from descant_gateway.identity.keys import KeyIssuer
from descant_gateway.identity.oidc import OidcClient
from descant_gateway.identity.passwords import Passwords
from descant_gateway.identity.roles import Principal
from descant_gateway.identity.sessions import Sessions
from descant_gateway.routes.access import LIMIT, OPT, Access, Rate
from descant_gateway.routes.admin import (
    audit,
    backends,
    errors,
    keys,
    limit_counters,
    limits,
    models,
    organizations,
    people,
    prices,
    projects,
    prompts,
    service_accounts,
    sign_in,
    teams,
    usage,
)
from descant_gateway.routes.admin.administration import audited
from descant_gateway.routes.admin.guard import AdminGuard, Connection
from descant_gateway.routes.admin.idempotency import IdempotentPosts
from descant_gateway.routes.storable_address import require_storable_address
from descant_gateway.sealing import Sealer
from descant_gateway.store.errors import StoreError
from descant_wire.errors import ApiError

OnChange = Callable[[], Awaitable[None]]

_ROUTES: Final = (
    *organizations.ROUTES,
    *teams.ROUTES,
    *projects.ROUTES,
    *prompts.ROUTES,
    *keys.ROUTES,
    *service_accounts.ROUTES,
    *people.ROUTES,
    *sign_in.ROUTES,
    *audit.ROUTES,
    *backends.ROUTES,
    *models.ROUTES,
    *limits.ROUTES,
    *limit_counters.ROUTES,
    *prices.ROUTES,
    *usage.ROUTES,
)
_REFUSALS: Final[ExceptionHandlersMap] = {
    ApiError: errors.refuse_api,
    StoreError: errors.refuse,
    ValidationException: errors.refuse_input,
    RecursionError: errors.refuse_depth,
    UnicodeDecodeError: errors.refuse_encoding,
    SQLAlchemyError: errors.fail_database,
    OSError: errors.fail_database,
}


async def _nobody_to_tell() -> None:
    """One gateway alone, or a test: PostgreSQL's notification tells it."""


def admin_router(config: GatewayConfig, engine: AsyncEngine, on_change: OnChange = _nobody_to_tell) -> Router:
    """All routes of the admin API, closed to everybody without a role.

    `on_change` is awaited after each change and before its answer, so that the other gateways hear of it first.
    """
    sealer = Sealer(config.identity.key_pepper)
    sessions = Sessions(config.identity.key_pepper, config.identity.session_hours)
    guard = AdminGuard(config, engine, sessions)
    posts = IdempotentPosts(lambda: engine, lambda: sealer)

    async def let_in(connection: Connection, handler: BaseRouteHandler) -> None:
        await guard.check(connection, handler)

    async def replay(request: Request[Any, Any, Any]) -> Response[bytes] | None:
        return await posts.replay(request)

    async def tell(response: Response[Any]) -> Response[Any]:
        await on_change()
        return response

    return Router(
        path="/admin/v1",
        route_handlers=_ROUTES,
        guards=[let_in, require_storable_address],
        opt={OPT: Access.ADMIN, LIMIT: Rate(per_minute=1200)},
        dependencies=_of_requests(engine) | _of_all(config, sealer, sessions),
        middleware=[posts],
        before_request=replay,
        after_request=tell,
        exception_handlers=_REFUSALS,
    )


def _of_requests(engine: AsyncEngine) -> dict[str, Provide]:
    def engine_of(request: Request[Any, Any, Any]) -> AsyncEngine:
        return audited(engine, request)

    def principal_of(request: Request[Any, Any, Any]) -> Principal:
        principal: Principal = request.state.principal
        return principal

    return {
        "engine": Provide(engine_of, sync_to_thread=False),
        "principal": Provide(principal_of, sync_to_thread=False),
    }


def _of_all(config: GatewayConfig, sealer: Sealer, sessions: Sessions) -> dict[str, Provide]:
    """What a route finds under the name of its parameter, the same for every request."""
    identity = config.identity
    callback = identity.public_url + sign_in.CALLBACK
    found: dict[str, object] = {
        "sealer": sealer,
        "valkey_url": config.valkey.url,
        "webhook_refusal": for_webhooks(config.limits.webhook_networks),
        "issuer": KeyIssuer(identity.key_pepper),
        "sessions": sessions,
        "passwords": Passwords(),
        "oidc": None if identity.oidc is None else OidcClient(identity.oidc, callback),
    }
    return {name: _always(value) for name, value in found.items()}


def _always(value: object) -> Provide:
    return Provide(lambda: value, sync_to_thread=False)
