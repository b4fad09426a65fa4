"""The admin API describes itself: OpenAPI 3.1 at /admin/v1/docs/openapi.json, and a page to read and try it."""

from litestar import Router
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, ScalarRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from descant_gateway.routes.access import LIMIT, OPT, Access, Rate

PATH = "/admin/v1/docs"
SCALAR_VERSION = "1.72.1"
"""Pinned: the page loads its script from jsDelivr, and no later one may slip in."""


def admin_description() -> OpenAPIConfig:
    """Open to everybody: it says what the source code says, and nothing of this installation."""
    return OpenAPIConfig(
        title="Descant admin API",
        version="1",
        description="Organizations, teams, projects, keys, people, models and usage of one Descant gateway.",
        openapi_router=Router(
            path=PATH,
            route_handlers=[],
            opt={OPT: Access.PUBLIC, LIMIT: Rate(per_minute=120)},
            include_in_schema=False,
        ),
        render_plugins=[ScalarRenderPlugin(version=SCALAR_VERSION), JsonRenderPlugin()],
        components=Components(
            security_schemes={
                "bearer": SecurityScheme(
                    type="http", scheme="bearer", description="The admin key, or a key with the scope `admin`."
                ),
                "session": SecurityScheme(
                    type="apiKey",
                    name="__Host-descant-session",
                    security_scheme_in="cookie",
                    description="After signing in; changes need the header x-csrf-token as well.",
                ),
            }
        ),
        security=[{"bearer": []}, {"session": []}],
    )
