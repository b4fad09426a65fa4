"""Who may administer: the holder of the admin key, of a key with a role, or of a session. All else is refused."""

from typing import Any, Final
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.config import GatewayConfig
from descant_gateway.identity import keys, sessions
from descant_gateway.identity.authenticate import require_address, require_valid
from descant_gateway.identity.roles import Permission, Principal
from descant_gateway.identity.scopes import Scope
from descant_gateway.identity.sessions import Sessions
from descant_gateway.routes.access import OPT, PERMISSION, Access, client_address, take_rate
from descant_gateway.store import principals
from descant_wire.errors import ApiError, invalid_api_key, permission_denied

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
REFUSED_PER_MINUTE: Final = 1200
"""Calls without a good credential, from one address."""

Connection = ASGIConnection[Any, Any, Any, Any]


class AdminGuard:
    """Finds the caller's `Principal`, requires the route's `Permission`, and leaves the principal in the state.

    It decides who may enter a route. Whether the thing that the route is about lies within the principal's reach is
    decided behind it, by `administration.require`.
    """

    def __init__(self, config: GatewayConfig, engine: AsyncEngine, people: Sessions) -> None:
        self._sessions = people
        self._config = config
        self._engine = engine
        self._pepper = config.identity.key_pepper.reveal()

    async def check(self, connection: Connection, handler: BaseRouteHandler) -> None:
        if handler.opt[OPT] is Access.PUBLIC:
            return
        principal = await self._principal_or_refusal(connection)
        take_rate(connection, handler, principal.actor.reference)
        needed: Permission = handler.opt[PERMISSION]
        if not principal.may_somewhere(needed):
            raise permission_denied(
                f"This needs the role {needed.role!s} (or a higher one) in a {needed.level.name.lower()}."
            )
        connection.state.principal = principal

    async def _principal_or_refusal(self, connection: Connection) -> Principal:
        try:
            return await self._principal(connection)
        except ApiError:
            connection.app.state.throttle.take("refused", client_address(connection) or "", REFUSED_PER_MINUTE)
            raise

    async def _principal(self, connection: Connection) -> Principal:
        if "authorization" in connection.headers:
            return await self._by_bearer(connection)
        token = connection.cookies.get(sessions.COOKIE)
        if token is None:
            raise _not_signed_in()
        signed_in = await self._by_session(token)
        if connection.scope.get("method") not in SAFE_METHODS:
            self._require_own_page(connection, token)
        return signed_in

    async def _by_bearer(self, connection: Connection) -> Principal:
        scheme, _, presented = connection.headers["authorization"].partition(" ")
        presented = presented.strip()
        if scheme.lower() != "bearer":
            raise _not_signed_in()
        if self._config.identity.admin_key.matches(presented):
            return Principal.admin_key()
        if presented.startswith(sessions.PREFIX):
            return await self._by_session(presented)
        return await self._by_key(presented, client_address(connection))

    async def _by_key(self, text: str, address: str | None) -> Principal:
        """A malformed key never reaches the database; one that is away is an error of its own, never a bad key."""
        try:
            presented = keys.parse(text)
        except keys.MalformedKey:
            raise _not_signed_in() from None
        async with self._engine.connect() as connection:
            found = await principals.by_key(connection, presented.public_id)
        hmacs = () if found is None else found.secret_hmacs
        if not keys.secret_matches(self._pepper, presented.secret, hmacs) or found is None:
            raise _not_signed_in()
        require_valid(found.revoked_at, found.expires_at)
        require_address(found.ip_ranges, address)
        if Scope.ADMIN not in found.scopes or not found.principal.grants:
            raise permission_denied("This key administers nothing: it has no role, or not the scope 'admin'.")
        return found.principal

    async def _by_session(self, token: str) -> Principal:
        async with self._engine.connect() as connection:
            found = await principals.by_session(connection, sessions.token_hash(token))
        if found is None:
            raise invalid_api_key("This session has ended. Sign in again.")
        return found.principal

    def _require_own_page(self, connection: Connection, token: str) -> None:
        """A browser sends its cookie for any page: a change needs what only a page of ours can know and send."""
        origin = connection.headers.get("origin")
        if origin is not None and origin != (self._config.identity.public_url or _own_origin(connection)):
            raise permission_denied("This change was asked for by another site's page.", code="csrf")
        if not self._sessions.is_csrf_token(connection.headers.get(sessions.CSRF_HEADER, ""), token):
            message = f"A change within a session needs the header {sessions.CSRF_HEADER}; GET /admin/v1/me tells it."
            raise permission_denied(message, code="csrf")


def _own_origin(connection: Connection) -> str:
    """Without a configured public URL: where the request went. Only ever compared, never used as an address."""
    url = urlsplit(str(connection.base_url))
    return f"{url.scheme}://{url.netloc}"


def _not_signed_in() -> ApiError:
    return invalid_api_key(
        "The admin API needs the admin key, a key with a role, or a session. Send 'Authorization: Bearer <it>'."
    )
