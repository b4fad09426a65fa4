"""Whom the gateway believes: its secrets, the proxies before it, the provider that people sign in with."""

from dataclasses import dataclass
from typing import Final, Self

from descant_gateway.config.environment import EnvironmentReader
from descant_gateway.config.parsers import any_text, at_least, hours, https_url, networks, origin
from descant_gateway.config.secret import Secret
from descant_gateway.egress.address import Networks
from descant_wire.internal import MIN_KEY_LENGTH

MIN_PEPPER_LENGTH: Final = 32
MIN_ADMIN_KEY_LENGTH: Final = 16


@dataclass(frozen=True, kw_only=True)
class OidcConfig:
    """The provider that people sign in with. Each field is the environment variable DESCANT_OIDC_<FIELD>."""

    issuer: str
    """Its /.well-known/openid-configuration says the rest."""
    client_id: str
    client_secret: Secret | None = None
    """None for a public client: PKCE is used in any case."""

    @classmethod
    def read(cls, read: EnvironmentReader) -> Self | None:
        """None without an issuer. With one, the client's id and the gateway's own address are needed as well."""
        issuer = read.value("DESCANT_OIDC_ISSUER", "", https_url)
        if not issuer:
            return None
        for needed in ("DESCANT_OIDC_CLIENT_ID", "DESCANT_PUBLIC_URL"):
            read.require(needed, "needed where DESCANT_OIDC_ISSUER is set")
        client_id = read.value("DESCANT_OIDC_CLIENT_ID", "", any_text)
        secret = read.optional_secret("DESCANT_OIDC_CLIENT_SECRET", any_text)
        return cls(issuer=issuer, client_id=client_id, client_secret=secret)


@dataclass(frozen=True, kw_only=True)
class IdentityConfig:
    key_pepper: Secret
    """Keys the HMAC of every key's secret: losing it makes all keys invalid. At least 32 characters."""
    admin_key: Secret
    """The bearer of /admin/v1. At least 16 characters."""
    internal_key: Secret | None = None
    """The engines' DESCANT_INTERNAL_KEY: signs whose a request is. None: engines are not told."""
    trusted_proxies: Networks = ()
    """Networks whose X-Forwarded-For is believed; without any, the peer's address counts."""
    public_url: str = ""
    """Where people's browsers reach the gateway: https://llm.example.com. Needed for signing in by OIDC."""
    session_hours: float = 12.0
    """How long a person stays signed in."""
    oidc: OidcConfig | None = None

    @classmethod
    def read(cls, read: EnvironmentReader) -> Self:
        return cls(
            key_pepper=read.secret("DESCANT_KEY_PEPPER", at_least(MIN_PEPPER_LENGTH)),
            admin_key=read.secret("DESCANT_ADMIN_KEY", at_least(MIN_ADMIN_KEY_LENGTH)),
            internal_key=read.optional_secret("DESCANT_INTERNAL_KEY", at_least(MIN_KEY_LENGTH)),
            trusted_proxies=read.value("DESCANT_TRUSTED_PROXIES", cls.trusted_proxies, networks),
            public_url=read.value("DESCANT_PUBLIC_URL", cls.public_url, origin),
            session_hours=read.value("DESCANT_SESSION_HOURS", cls.session_hours, hours),
            oidc=OidcConfig.read(read),
        )
