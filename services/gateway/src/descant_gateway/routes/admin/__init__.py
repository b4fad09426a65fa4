"""The admin API, /admin/v1: teams, keys, backends, models, usage. Its routes hold no SQL; `store` does."""

from litestar import Router
from litestar.di import Provide
from litestar.exceptions import ValidationException
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.access import OPT, Access
from descant_gateway.config import GatewayConfig
from descant_gateway.keys import KeyIssuer
from descant_gateway.routes.admin import backends, errors, keys, models, organizations, teams, usage
from descant_gateway.routes.admin.guard import require_admin_key
from descant_gateway.sealing import Sealer
from descant_gateway.store.errors import StoreError


def admin_router(config: GatewayConfig, engine: AsyncEngine) -> Router:
    """All routes of the admin API, closed to everybody without the admin key."""
    sealer, issuer = Sealer(config.key_pepper), KeyIssuer(config.key_pepper)
    return Router(
        path="/admin/v1",
        route_handlers=[
            *organizations.ROUTES,
            *teams.ROUTES,
            *keys.ROUTES,
            *backends.ROUTES,
            *models.ROUTES,
            *usage.ROUTES,
        ],
        guards=[require_admin_key(config.admin_key)],
        opt={OPT: Access.ADMIN},
        dependencies={
            "engine": Provide(lambda: engine, sync_to_thread=False),
            "sealer": Provide(lambda: sealer, sync_to_thread=False),
            "issuer": Provide(lambda: issuer, sync_to_thread=False),
        },
        exception_handlers={
            StoreError: errors.refuse,
            ValidationException: errors.refuse_input,
            RecursionError: errors.refuse_depth,
            SQLAlchemyError: errors.fail_database,
            OSError: errors.fail_database,
        },
    )
