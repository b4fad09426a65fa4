"""Signing in at an OpenID Connect provider: the authorization code flow with PKCE, state and nonce.

https://openid.net/specs/openid-connect-core-1_0.html, https://www.rfc-editor.org/rfc/rfc7636
"""

import hmac
import secrets
import time
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from msgspec import Struct

from descant_gateway.config import OidcConfig
from descant_gateway.egress.address import keeps_credentials
from descant_wire.errors import ApiError, ErrorDetail, service_unavailable

SCOPES: Final = "openid email profile"
ALGORITHMS: Final = ["RS256", "PS256", "ES256", "EdDSA"]
"""Signatures by the provider's private key only: never `none`, never a secret that is shared."""
TIMEOUT_S: Final = 10.0
CLOCK_SKEW_S: Final = 60
METADATA_LIFETIME_S: Final = 3600.0
RETRY_AFTER_S: Final = 5.0


class PendingSignIn(Struct, frozen=True):
    """What the gateway must know again when the browser comes back; it travels sealed in a cookie."""

    state: str
    nonce: str
    code_verifier: str
    started_at: float
    """Seconds since the epoch."""


class Identity(Struct, frozen=True):
    """Whom the provider vouches for."""

    issuer: str
    subject: str
    email: str | None
    """None unless the provider says that it is verified."""
    name: str


class _Provider(Struct, frozen=True):
    authorization_endpoint: str
    token_endpoint: str
    keys: KeySet
    read_at: float


class OidcClient:
    """Speaks to one provider, whose description and keys are read at first use and again after an hour."""

    def __init__(self, config: OidcConfig, redirect_uri: str) -> None:
        self._config = config
        self._redirect_uri = redirect_uri
        self._known: _Provider | None = None

    async def start(self) -> tuple[str, PendingSignIn]:
        """Where to send the browser, and what to remember. Raises 503 while the provider is away."""
        pending = PendingSignIn(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            code_verifier=secrets.token_urlsafe(48),
            started_at=time.time(),
        )
        provider = await self._provider()
        async with self._client() as client:
            url, _ = client.create_authorization_url(
                provider.authorization_endpoint,
                state=pending.state,
                nonce=pending.nonce,
                code_verifier=pending.code_verifier,
            )
        return url, pending

    async def finish(self, pending: PendingSignIn, *, code: str, state: str) -> Identity:
        """Raises 400 for an answer to another question, 401 for a token that is not good, 503 for an outage."""
        if not hmac.compare_digest(state.encode(), pending.state.encode()):
            raise _refused(400, "This sign-in was started elsewhere, or before. Start it again.")
        provider = await self._provider()
        token = await self._exchange(provider, code, pending.code_verifier)
        id_token = token.get("id_token")
        if not isinstance(id_token, str):
            raise _refused(401, "The provider sent no ID token.")
        return self._identity(await self._claims(id_token, provider), pending.nonce)

    async def _exchange(self, provider: _Provider, code: str, code_verifier: str) -> dict[str, Any]:
        try:
            async with self._client() as client:
                token: dict[str, Any] = await client.fetch_token(
                    provider.token_endpoint, code=code, code_verifier=code_verifier
                )
                return token
        except AuthlibBaseError as error:
            raise _refused(401, f"The provider refused the sign-in: {error.error}.") from None
        except (httpx.HTTPError, ValueError) as error:
            raise _away(error) from None

    async def _claims(self, id_token: str, provider: _Provider) -> dict[str, Any]:
        """Checks the signature; a key that is not known may be new, so the keys are read once more."""
        try:
            return jwt.decode(id_token, provider.keys, algorithms=ALGORITHMS).claims
        except (JoseError, ValueError):
            provider = await self._provider(afresh=True)
        try:
            return jwt.decode(id_token, provider.keys, algorithms=ALGORITHMS).claims
        except (JoseError, ValueError) as error:
            raise _refused(401, f"The provider's ID token is not good: {type(error).__name__}.") from None

    def _identity(self, claims: dict[str, Any], nonce: str) -> Identity:
        registry = jwt.JWTClaimsRegistry(
            leeway=CLOCK_SKEW_S,
            iss={"essential": True, "value": self._config.issuer},
            aud={"essential": True, "value": self._config.client_id},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            registry.validate(claims)
        except JoseError as error:
            raise _refused(401, f"The provider's ID token is not for this sign-in: {error}.") from None
        if isinstance(claims["aud"], list) and claims.get("azp") != self._config.client_id and len(claims["aud"]) > 1:
            raise _refused(401, "The provider's ID token was made for another client.")
        email = claims.get("email") if claims.get("email_verified") is True else None
        return Identity(
            issuer=self._config.issuer,
            subject=str(claims["sub"]),
            email=email.lower() if isinstance(email, str) else None,
            name=str(claims.get("name") or email or claims["sub"])[:200],
        )

    async def _provider(self, *, afresh: bool = False) -> _Provider:
        known = self._known
        if known is None or afresh or time.monotonic() - known.read_at > METADATA_LIFETIME_S:
            known = self._known = await self._read_provider()
        return known

    async def _read_provider(self) -> _Provider:
        """Its addresses must be its own to say: the issuer in the description has to be the configured one."""
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
                described = await client.get(f"{self._config.issuer}/.well-known/openid-configuration")
                metadata = described.raise_for_status().json()
                if metadata["issuer"].rstrip("/") != self._config.issuer:
                    raise ValueError("the provider describes itself as another issuer")
                keys = (await client.get(self._safe(metadata["jwks_uri"]))).raise_for_status().json()
            return _Provider(
                self._safe(metadata["authorization_endpoint"]),
                self._safe(metadata["token_endpoint"]),
                KeySet.import_key_set(keys),
                time.monotonic(),
            )
        except (httpx.HTTPError, JoseError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise _away(error) from None

    def _safe(self, url: str) -> str:
        """What the provider names is asked as safely as the provider itself. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme != urlsplit(self._config.issuer).scheme or not parts.hostname:
            raise ValueError("the provider names an address of another scheme than its own")
        if keeps_credentials(parts.hostname):
            raise ValueError("the provider names an address where clouds keep their credentials")
        return url

    def _client(self) -> AsyncOAuth2Client:
        secret = self._config.client_secret
        return AsyncOAuth2Client(
            client_id=self._config.client_id,
            client_secret=None if secret is None else secret.reveal(),
            token_endpoint_auth_method="none" if secret is None else "client_secret_basic",
            scope=SCOPES,
            redirect_uri=self._redirect_uri,
            code_challenge_method="S256",
            timeout=TIMEOUT_S,
            trust_env=False,
        )


def _refused(status: int, message: str) -> ApiError:
    return ApiError(status, ErrorDetail(message=message, type="authentication_error", code="sign_in_refused"))


def _away(error: Exception) -> ApiError:
    message = f"The provider that people sign in with does not answer as it should: {type(error).__name__}."
    return service_unavailable(message, retry_after_s=RETRY_AFTER_S)
