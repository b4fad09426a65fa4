"""A small real OpenID Connect provider on a socket: it signs real tokens and holds clients to PKCE.

Each field changes what the next sign-in gets, so that a test can be cheated in any one way.
"""

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import BasicAuth, web
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

CLIENT_ID = "descant"
CLIENT_SECRET = "a secret of the provider and its client"


@dataclass
class Provider:
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "first", "use": "sig"}))
    subject: str = "subject-1"
    email: str = "ada@example.com"
    email_verified: bool = True
    claims: dict = field(default_factory=dict)
    """Laid over those that are right."""
    algorithm: str = "RS256"
    signs_with: object = None
    """Another key than the published one."""
    url: str = ""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    num_described: int = 0

    async def describe(self, request: web.Request) -> web.Response:
        self.num_described += 1
        return web.json_response(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
            }
        )

    async def show_keys(self, request: web.Request) -> web.Response:
        return web.json_response(KeySet([self.key]).as_dict(private=False))

    async def authorize(self, request: web.Request) -> web.Response:
        """Everybody is signed in here and agrees at once."""
        query = request.query
        assert (query["response_type"], query["client_id"]) == ("code", CLIENT_ID)
        assert query["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self.codes[code] = dict(query)
        raise web.HTTPFound(f"{query['redirect_uri']}?code={code}&state={query['state']}")

    async def exchange(self, request: web.Request) -> web.Response:
        form = await request.post()
        asked = self.codes.pop(str(form["code"]), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(str(form["code_verifier"]).encode()).digest()).rstrip(b"=")
        authorization = BasicAuth.decode(request.headers["authorization"])
        is_client = (authorization.login, authorization.password) == (CLIENT_ID, CLIENT_SECRET)
        if asked is None or asked["code_challenge"] != challenge.decode() or not is_client:
            return web.json_response({"error": "invalid_grant"}, status=400)
        if asked["redirect_uri"] != form["redirect_uri"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response(
            {"access_token": "unused", "token_type": "Bearer", "id_token": self.id_token(asked["nonce"])}
        )

    def id_token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "sub": self.subject,
            "nonce": nonce,
            "iat": now,
            "exp": now + 300,
            "email": self.email,
            "email_verified": self.email_verified,
            "name": "Ada",
        }
        header = {"alg": self.algorithm, "kid": self.key.kid}
        return jwt.encode(header, claims | self.claims, self.signs_with or self.key, algorithms=[self.algorithm])


@asynccontextmanager
async def running_provider(provider: Provider) -> AsyncIterator[Provider]:
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", provider.describe)
    app.router.add_get("/keys", provider.show_keys)
    app.router.add_get("/authorize", provider.authorize)
    app.router.add_post("/token", provider.exchange)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    provider.url = f"http://127.0.0.1:{port}"
    try:
        yield provider
    finally:
        await runner.cleanup()
