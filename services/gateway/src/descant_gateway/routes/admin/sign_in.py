"""/admin/v1/sign-in, /sign-out, /me: people come in by password or by their provider, and get a session.

A session is a random token, of which the database holds a hash. A browser keeps it in a cookie that no script can read
and no other site can set; whoever is no browser may send it as a bearer.
"""

import time
from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import Cookie, State
from litestar.di import NamedDependency
from litestar.params import FromQuery, JSONBody, QueryParameter
from litestar.response import Redirect
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.identity.oidc import OidcClient, PendingSignIn
from descant_gateway.identity.passwords import MAX_LENGTH, Passwords
from descant_gateway.identity.roles import Actor, Grant, Principal, Role
from descant_gateway.identity.sessions import COOKIE, Sessions, token_hash
from descant_gateway.routes.access import LIMIT, OPT, Access, Rate, client_address, needs
from descant_gateway.sealing import Sealer, UnsealError
from descant_gateway.storable import StorableText
from descant_gateway.store import people as store
from descant_wire.errors import ApiError, ErrorDetail, invalid_request, not_found

PENDING_COOKIE: Final = "__Host-descant-sign-in"
PENDING_LIFETIME_S: Final = 600
CALLBACK: Final = "/admin/v1/sign-in/oidc/callback"
AFTER_SIGN_IN: Final = "/admin/v1/me"
PER_PERSON_PER_MINUTE: Final = 30

_OPEN: Final = {OPT: Access.PUBLIC, LIMIT: Rate(per_minute=60)}
AnyRequest = Request[object, object, State]


class PasswordSignIn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    email: StorableText
    password: str


class Session(Struct, frozen=True):
    token: str
    """For `Authorization: Bearer`; browsers have it in their cookie."""
    csrf_token: str
    expires_at: datetime


class Me(Struct, frozen=True):
    actor: Actor
    grants: tuple[Grant, ...]
    csrf_token: str | None
    """For the header x-csrf-token of changes, in a session that a cookie keeps."""


@post("/sign-in/password", opt=_OPEN, status_code=200)
async def sign_in_by_password(
    request: AnyRequest,
    data: JSONBody[PasswordSignIn],
    engine: NamedDependency[AsyncEngine],
    sessions: NamedDependency[Sessions],
    passwords: NamedDependency[Passwords],
) -> Response[Session]:
    """One answer for a wrong password and an unknown person, after the same time. Takes JSON, which no form sends."""
    email = data.email.lower()[:255]
    request.app.state.throttle.take("sign-in", email, PER_PERSON_PER_MINUTE)
    async with engine.begin() as connection:
        found = await store.password_hash(connection, email)
    is_right = await passwords.matches(data.password[: MAX_LENGTH + 1], None if found is None else found[1])
    if not is_right or found is None:
        raise _refused("The e-mail address or the password is wrong.")
    session, cookie = await _start_session(request, engine, sessions, found[0])
    return Response(session, cookies=[cookie])


@get("/sign-in/oidc", opt=_OPEN)
async def start_oidc(sealer: NamedDependency[Sealer], oidc: NamedDependency[OidcClient | None]) -> Redirect:
    """Sends the browser to the provider."""
    url, pending = await _required(oidc).start()
    sealed = sealer.seal(msgspec.json.encode(pending).decode(), name=PENDING_COOKIE)
    return Redirect(url, cookies=[_cookie(PENDING_COOKIE, sealed.hex(), PENDING_LIFETIME_S)])


@get("/sign-in/oidc/callback", opt=_OPEN)
async def finish_oidc(
    request: AnyRequest,
    engine: NamedDependency[AsyncEngine],
    sessions: NamedDependency[Sessions],
    sealer: NamedDependency[Sealer],
    oidc: NamedDependency[OidcClient | None],
    sent_state: Annotated[str, QueryParameter(name="state")] = "",
    code: FromQuery[str] = "",
    error: FromQuery[str] = "",
) -> Redirect:
    """The provider sends the browser back here. Only who was invited gets in."""
    client = _required(oidc)
    pending = _pending(request, sealer)
    if error or not code:
        raise _refused(f"The provider refused the sign-in: {error[:80] or 'it sent no code'}.")
    identity = await client.finish(pending, code=code, state=sent_state)
    async with engine.begin() as connection:
        person_id = await store.recognize(connection, identity)
    if person_id is None:
        raise _refused("Nobody invited you here under a verified address. Ask an administrator.")
    _, cookie = await _start_session(request, engine, sessions, person_id)
    return Redirect(AFTER_SIGN_IN, cookies=[cookie, _cookie(PENDING_COOKIE, "", 0)])


@post("/sign-out", opt=_OPEN, status_code=204)
async def sign_out(request: AnyRequest, engine: NamedDependency[AsyncEngine]) -> Response[None]:
    """Ends the session that the request carries. Whoever has its token may end it, so it needs nothing else."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    token = bearer.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    async with engine.begin() as connection:
        await store.end_session(connection, token_hash(token))
    return Response(None, status_code=204, cookies=[_cookie(COOKIE, "", 0)])


@get("/me", opt=needs(Role.VIEWER))
async def show_me(
    request: AnyRequest, principal: NamedDependency[Principal], sessions: NamedDependency[Sessions]
) -> Me:
    token = request.cookies.get(COOKIE)
    csrf = None if token is None else sessions.csrf_token(token)
    return Me(principal.actor, principal.grants, csrf)


async def _start_session(
    request: AnyRequest, engine: AsyncEngine, sessions: Sessions, person_id: UUID
) -> tuple[Session, Cookie]:
    token, expires_at = sessions.new_token(), sessions.expiry()
    async with engine.begin() as connection:
        await store.start_session(
            connection, person_id, token_hash(token), address=client_address(request), expires_at=expires_at
        )
    session = Session(token, sessions.csrf_token(token), expires_at)
    return session, _cookie(COOKIE, token, int(sessions.lifetime.total_seconds()))


def _pending(request: AnyRequest, sealer: Sealer) -> PendingSignIn:
    """Raises 400 unless this browser started a sign-in here, a short while ago."""
    try:
        sealed = bytes.fromhex(request.cookies.get(PENDING_COOKIE, ""))
        pending = msgspec.json.decode(sealer.unseal(sealed, name=PENDING_COOKIE), type=PendingSignIn)
    except (ValueError, UnsealError, msgspec.MsgspecError):
        raise invalid_request("No sign-in is under way in this browser. Start it again.") from None
    if not 0 <= time.time() - pending.started_at <= PENDING_LIFETIME_S:
        raise invalid_request("This sign-in took too long. Start it again.")
    return pending


def _cookie(name: str, value: str, max_age_s: int) -> Cookie:
    """__Host-: sent over TLS only, to this very host only, and no subdomain can set it."""
    return Cookie(name, value=value, path="/", secure=True, httponly=True, samesite="lax", max_age=max_age_s)


def _required(oidc: OidcClient | None) -> OidcClient:
    if oidc is None:
        raise not_found("Signing in by OIDC is not set up here (DESCANT_OIDC_ISSUER).", code="unknown_url")
    return oidc


def _refused(message: str) -> ApiError:
    return ApiError(401, ErrorDetail(message=message, type="authentication_error", code="sign_in_refused"))


ROUTES = (sign_in_by_password, start_oidc, finish_oidc, sign_out, show_me)
