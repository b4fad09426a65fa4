"""Idempotency-Key on POST: the same request sent twice is done once, and both get the one answer.

The first claims the key for its caller; its answer is kept for a day, encrypted, since it may hold a new key's text.
The same key with another body is a mistake of the client's (422); while the first is under way, the second waits (409).
https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

import hashlib
from collections.abc import Callable
from typing import Any, Final

from litestar import Request, Response
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.identity.roles import Principal
from descant_gateway.sealing import Sealer
from descant_gateway.store import idempotency as store
from descant_wire.errors import ApiError, ErrorDetail, invalid_request

HEADER: Final = "idempotency-key"
REPLAYED: Final = "idempotency-replayed"
MAX_KEY_LENGTH: Final = 255
RETRY_AFTER_S: Final = 1.0


class Claimed(Struct, frozen=True):
    """The key that this request holds until it is answered."""

    actor: str
    key: str


class IdempotentPosts(ASGIMiddleware):
    """`replay` runs before a handler and may answer in its place; the middleware keeps what a handler answered."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, engine: Callable[[], AsyncEngine], sealer: Callable[[], Sealer]) -> None:
        self._engine = engine
        self._sealer = sealer

    async def replay(self, request: Request[Any, Any, Any]) -> Response[bytes] | None:
        """The earlier answer, if there is one. Raises ApiError: 400, 409, 422."""
        key = request.headers.get(HEADER)
        principal: Principal | None = request.state.get("principal")
        if request.method != "POST" or key is None or principal is None:
            return None
        if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isprintable():
            raise invalid_request(f"{HEADER} must be 1 to {MAX_KEY_LENGTH} printable characters.", param=HEADER)
        actor = principal.actor.reference
        request_hash = hashlib.sha256(f"{request.url.path}\n".encode() + await request.body()).digest()
        async with self._engine().begin() as connection:
            earlier = await store.claim(connection, actor, key, request_hash)
        if earlier is None:
            request.state.claimed = Claimed(actor, key)
            return None
        return self._answer(earlier, request_hash, Claimed(actor, key))

    def _answer(self, earlier: store.Claim, request_hash: bytes, claimed: Claimed) -> Response[bytes]:
        if earlier.request_hash != request_hash:
            raise _refused(422, f"This {HEADER} was sent with another request before.", "idempotency_key_reused")
        if earlier.status is None or earlier.sealed_body is None:
            message = f"The request with this {HEADER} is still under way, or was broken off: look at what it changed."
            raise _refused(409, message, "idempotency_key_in_use")
        body = self._sealer().unseal(earlier.sealed_body, name=_sealed_name(claimed))
        return Response(
            body.encode(), status_code=earlier.status, media_type="application/json", headers={REPLAYED: "true"}
        )

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        parts: list[bytes] = []
        status = 0

        async def keep(message: Message) -> None:
            nonlocal status
            claimed: Claimed | None = scope.get("state", {}).get("claimed")
            if message["type"] == "http.response.start":
                status = message["status"]
            elif claimed is not None and message["type"] == "http.response.body":
                parts.append(message["body"])
                if not message["more_body"]:
                    await self._finish(claimed, status, b"".join(parts))
            await send(message)

        try:
            await next_app(scope, receive, keep)
        except BaseException:
            if (claimed := scope.get("state", {}).get("claimed")) is not None:
                await self._finish(claimed, 0, b"")
            raise

    async def _finish(self, claimed: Claimed, status: int, body: bytes) -> None:
        """Before the answer leaves: whoever has it can rely on getting it again."""
        async with self._engine().begin() as connection:
            if 200 <= status < 300:
                sealed = self._sealer().seal(body.decode(), name=_sealed_name(claimed))
                await store.complete(connection, claimed.actor, claimed.key, status, sealed)
            else:
                await store.release(connection, claimed.actor, claimed.key)


def _sealed_name(claimed: Claimed) -> str:
    return f"reply {claimed.actor} {claimed.key}"


def _refused(status: int, message: str, code: str) -> ApiError:
    detail = ErrorDetail(message=message, type="invalid_request_error", param=HEADER, code=code)
    return ApiError(status, detail, retry_after_s=RETRY_AFTER_S if status == 409 else None)
