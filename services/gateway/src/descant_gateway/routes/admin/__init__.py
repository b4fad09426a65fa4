"""The admin API, /admin/v1: who may use what, and what was used. Its routes hold no SQL; `store` does."""

from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Request, Response, Router
from litestar.di import Provide
from litestar.exceptions import ValidationException
from litestar.handlers import BaseRouteHandler
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.config import GatewayConfig
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
from descant_gateway.sealing import Sealer
from descant_gateway.store.errors import StoreError
from descant_wire.errors import ApiError

OnChange = Callable[[], Awaitable[None]]


async def _nobody_to_tell() -> None:
    """One gateway alone, or a test: PostgreSQL's notification tells it."""


def admin_router(config: GatewayConfig, engine: AsyncEngine, on_change: OnChange = _nobody_to_tell) -> Router:
    """All routes of the admin API, closed to everybody without a role.

    `on_change` is awaited after each change and before its answer, so that the other gateways hear of it first.
    """
    sealer, issuer = Sealer(config.key_pepper), KeyIssuer(config.key_pepper)

    sessions = Sessions(config.key_pepper, config.session_hours)
    guard = AdminGuard(config, engine, sessions)
    passwords = Passwords()
    oidc = None if config.oidc is None else OidcClient(config.oidc, config.public_url + sign_in.CALLBACK)
    posts = IdempotentPosts(lambda: engine, lambda: sealer)

    async def let_in(connection: Connection, handler: BaseRouteHandler) -> None:
        await guard.check(connection, handler)

    async def replay(request: Request[Any, Any, Any]) -> Response[bytes] | None:
        return await posts.replay(request)

    async def tell(response: Response[Any]) -> Response[Any]:
        await on_change()
        return response

    def engine_of(request: Request[Any, Any, Any]) -> AsyncEngine:
        return audited(engine, request)

    def principal_of(request: Request[Any, Any, Any]) -> Principal:
        principal: Principal = request.state.principal
        return principal

    return Router(
        path="/admin/v1",
        route_handlers=[
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
        ],
        guards=[let_in],
        opt={OPT: Access.ADMIN, LIMIT: Rate(per_minute=1200)},
        dependencies={
            "engine": Provide(engine_of, sync_to_thread=False),
            "principal": Provide(principal_of, sync_to_thread=False),
            "sealer": Provide(lambda: sealer, sync_to_thread=False),
            "valkey_url": Provide(lambda: config.valkey_url, sync_to_thread=False),
            "issuer": Provide(lambda: issuer, sync_to_thread=False),
            "sessions": Provide(lambda: sessions, sync_to_thread=False),
            "passwords": Provide(lambda: passwords, sync_to_thread=False),
            "oidc": Provide(lambda: oidc, sync_to_thread=False),
        },
        middleware=[posts],
        before_request=replay,
        after_request=tell,
        exception_handlers={
            ApiError: errors.refuse_api,
            StoreError: errors.refuse,
            ValidationException: errors.refuse_input,
            RecursionError: errors.refuse_depth,
            SQLAlchemyError: errors.fail_database,
            OSError: errors.fail_database,
        },
    )
