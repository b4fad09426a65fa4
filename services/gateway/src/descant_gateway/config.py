"""The gateway's configuration: read once from the environment at start, frozen from then on."""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, Self, TypeVar
from urllib.parse import urlsplit

from descant_wire.internal import MIN_KEY_LENGTH

MIN_PEPPER_LENGTH: Final = 32
MIN_ADMIN_KEY_LENGTH: Final = 16
KUBERNETES_SERVICE_LINK: Final = "tcp://"

T = TypeVar("T")
Networks = tuple[IPv4Network | IPv6Network, ...]


class Outage(StrEnum):
    """What becomes of requests whose limits can't be checked."""

    REFUSE = "refuse"
    """503 with Retry-After."""
    LOCAL = "local"
    """Served within this process's share."""


class ConfigError(Exception):
    """The environment doesn't make a configuration. The message lists every problem, one a line."""


class Secret:
    """Text that must not be seen: `repr`, `str` and encoders show nothing of it; `reveal()` is the one way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def matches(self, candidate: str) -> bool:
        """Compares in a time that doesn't depend on where the texts differ."""
        return hmac.compare_digest(self._text.encode(), candidate.encode("utf-8", "surrogateescape"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._text)

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)"


@dataclass(frozen=True, kw_only=True)
class OidcConfig:
    """The provider that people sign in with. Each field is the environment variable DESCANT_OIDC_<FIELD>."""

    issuer: str
    """Its /.well-known/openid-configuration says the rest."""
    client_id: str
    client_secret: Secret | None = None
    """None for a public client: PKCE is used in any case."""


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Each field is the environment variable DESCANT_<FIELD>, but for DESCANT_GATEWAY_HOST, _PORT and _WORKERS.

    The four secrets may instead be in files, named by DESCANT_<FIELD>_FILE.
    """

    database_url: Secret
    """postgresql://user:password@host:port/database; a folder of unix sockets as ?host=/path."""
    valkey_url: Secret
    """redis:// (or rediss://, valkey://, unix://)."""
    key_pepper: Secret
    """Keys the HMAC of every key's secret: losing it makes all keys invalid. At least 32 characters."""
    admin_key: Secret
    """The bearer of /admin/v1. At least 16 characters."""
    internal_key: Secret | None = None
    """The engines' DESCANT_INTERNAL_KEY: signs whose a request is. None: engines are not told."""
    host: str = "127.0.0.1"
    port: int = 8080
    """0 takes a free port."""
    max_body_bytes: int = 8 << 20
    upstream_connect_timeout_s: float = 2.0
    upstream_first_byte_timeout_s: float = 120.0
    """From the request sent to the first byte of the reply; covers queueing and prefill in the engine."""
    upstream_idle_timeout_s: float = 60.0
    """Between two chunks of a stream."""
    upstream_deadline_s: float = 600.0
    """The whole of any reply, streamed or not."""
    health_interval_s: float = 2.0
    """Between two health probes of a backend."""
    valkey_timeout_s: float = 0.25
    """One operation; longer counts as an outage."""
    valkey_outage_rates: Outage = Outage.REFUSE
    """While Valkey is away, what becomes of keys with limits per minute or on requests at once: refuse or local."""
    valkey_outage_budgets: Outage = Outage.REFUSE
    """The same for limits per day and longer, and all money."""
    num_processes: int = 1
    """Gateway processes that share limits and backends: each takes this part of them where it decides by itself."""
    limit_lease_s: float = 30.0
    """What the requests of a gateway that died held comes back within this."""
    queue_length: int = 1000
    """Requests that may wait for saturated backends, in this process; more are refused with 503."""
    queue_timeout_s: float = 30.0
    """How long each may wait."""
    database_pool_size: int = 4
    """Connections per process; the request path uses none."""
    catalogue_poll_s: float = 3.0
    """Behind the notifications, in case one is lost."""
    database_listen: bool = True
    """False behind a pooler that knows no LISTEN (PgBouncer in transaction mode): Valkey tells of changes alone."""
    trusted_proxies: Networks = ()
    """Networks whose X-Forwarded-For is believed; without any, the peer's address counts."""
    public_url: str = ""
    """Where people's browsers reach the gateway: https://llm.example.com. Needed for signing in by OIDC."""
    session_hours: float = 12.0
    """How long a person stays signed in."""
    oidc: OidcConfig | None = None
    catalogue_file: Path | None = None
    """Backends, models and aliases as code (descant.toml); followed as it changes. None: the admin API alone."""
    ledger_spool_dir: Path = Path("var/ledger-spool")
    """Usage records go here while PostgreSQL is away. One folder per gateway process."""
    batch_concurrency: int = 16
    """Lines of batches that this process runs at once; a quarter of it while other requests run."""
    batch_lease_s: float = 30.0
    """What a gateway that died ran of batches is run by another after this."""
    retention_days: int = 30
    """Files, stored responses and ended batches are kept for so long."""
    max_file_bytes: int = 200 << 20
    """Of one uploaded file."""
    max_team_file_bytes: int = 10 << 30
    """Of all files of a team."""
    ledger_keep_days: int = 400
    """Older days of the ledger are dropped; their sums by the hour stay."""
    shutdown_grace_s: float = 30.0
    """How long running streams may take to end after SIGTERM."""
    otlp_endpoint: str = ""
    """Where traces go, OTLP over HTTP: http://collector:4318/v1/traces. Empty: there are none."""
    workers: int = 1
    """Processes on the one port."""
    drain_delay_s: float = 0.0
    """After SIGTERM /ready says no for so long before nothing new is accepted: longer than a balancer's probes."""
    log_level: str = "info"

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Self:
        """Raises ConfigError with every missing or malformed variable, never a value that could be secret."""
        read = _EnvironmentReader(env)
        config = cls(
            database_url=read.secret("DESCANT_DATABASE_URL", _postgres_url),
            valkey_url=read.secret("DESCANT_VALKEY_URL", _valkey_url),
            key_pepper=read.secret("DESCANT_KEY_PEPPER", _at_least(MIN_PEPPER_LENGTH)),
            admin_key=read.secret("DESCANT_ADMIN_KEY", _at_least(MIN_ADMIN_KEY_LENGTH)),
            internal_key=read.optional_secret("DESCANT_INTERNAL_KEY", _at_least(MIN_KEY_LENGTH)),
            host=read.value("DESCANT_GATEWAY_HOST", cls.host, _text),
            port=read.value("DESCANT_GATEWAY_PORT", cls.port, _port),
            max_body_bytes=read.value("DESCANT_MAX_BODY_BYTES", cls.max_body_bytes, _positive_int),
            upstream_connect_timeout_s=read.value(
                "DESCANT_UPSTREAM_CONNECT_TIMEOUT_S", cls.upstream_connect_timeout_s, _seconds
            ),
            upstream_first_byte_timeout_s=read.value(
                "DESCANT_UPSTREAM_FIRST_BYTE_TIMEOUT_S", cls.upstream_first_byte_timeout_s, _seconds
            ),
            upstream_idle_timeout_s=read.value(
                "DESCANT_UPSTREAM_IDLE_TIMEOUT_S", cls.upstream_idle_timeout_s, _seconds
            ),
            upstream_deadline_s=read.value("DESCANT_UPSTREAM_DEADLINE_S", cls.upstream_deadline_s, _seconds),
            health_interval_s=read.value("DESCANT_HEALTH_INTERVAL_S", cls.health_interval_s, _seconds),
            valkey_timeout_s=read.value("DESCANT_VALKEY_TIMEOUT_S", cls.valkey_timeout_s, _seconds),
            valkey_outage_rates=read.value("DESCANT_VALKEY_OUTAGE_RATES", cls.valkey_outage_rates, _outage),
            valkey_outage_budgets=read.value("DESCANT_VALKEY_OUTAGE_BUDGETS", cls.valkey_outage_budgets, _outage),
            num_processes=read.value("DESCANT_NUM_PROCESSES", cls.num_processes, _positive_int),
            limit_lease_s=read.value("DESCANT_LIMIT_LEASE_S", cls.limit_lease_s, _seconds),
            queue_length=read.value("DESCANT_QUEUE_LENGTH", cls.queue_length, _positive_int),
            queue_timeout_s=read.value("DESCANT_QUEUE_TIMEOUT_S", cls.queue_timeout_s, _seconds),
            database_pool_size=read.value("DESCANT_DATABASE_POOL_SIZE", cls.database_pool_size, _positive_int),
            catalogue_poll_s=read.value("DESCANT_CATALOGUE_POLL_S", cls.catalogue_poll_s, _seconds),
            database_listen=read.value("DESCANT_DATABASE_LISTEN", cls.database_listen, _yes_or_no),
            trusted_proxies=read.value("DESCANT_TRUSTED_PROXIES", cls.trusted_proxies, _networks),
            public_url=read.value("DESCANT_PUBLIC_URL", cls.public_url, _origin),
            session_hours=read.value("DESCANT_SESSION_HOURS", cls.session_hours, _hours),
            oidc=_oidc(read),
            catalogue_file=read.value("DESCANT_CATALOGUE_FILE", cls.catalogue_file, Path),
            ledger_spool_dir=read.value("DESCANT_LEDGER_SPOOL_DIR", cls.ledger_spool_dir, Path),
            batch_concurrency=read.value("DESCANT_BATCH_CONCURRENCY", cls.batch_concurrency, _positive_int),
            batch_lease_s=read.value("DESCANT_BATCH_LEASE_S", cls.batch_lease_s, _seconds),
            retention_days=read.value("DESCANT_RETENTION_DAYS", cls.retention_days, _positive_int),
            max_file_bytes=read.value("DESCANT_MAX_FILE_BYTES", cls.max_file_bytes, _positive_int),
            max_team_file_bytes=read.value("DESCANT_MAX_TEAM_FILE_BYTES", cls.max_team_file_bytes, _positive_int),
            ledger_keep_days=read.value("DESCANT_LEDGER_KEEP_DAYS", cls.ledger_keep_days, _positive_int),
            shutdown_grace_s=read.value("DESCANT_SHUTDOWN_GRACE_S", cls.shutdown_grace_s, _seconds),
            otlp_endpoint=read.value("DESCANT_OTLP_ENDPOINT", cls.otlp_endpoint, _http_url),
            workers=read.value("DESCANT_GATEWAY_WORKERS", cls.workers, _positive_int),
            drain_delay_s=read.value("DESCANT_DRAIN_DELAY_S", cls.drain_delay_s, _seconds_or_none),
            log_level=read.value("DESCANT_LOG_LEVEL", cls.log_level, _log_level),
        )
        read.raise_problems()
        return config


def _oidc(read: "_EnvironmentReader") -> OidcConfig | None:
    """None without an issuer. With one, the client's id and the gateway's own address are needed as well."""
    issuer = read.value("DESCANT_OIDC_ISSUER", "", _https_url)
    if not issuer:
        return None
    for needed in ("DESCANT_OIDC_CLIENT_ID", "DESCANT_PUBLIC_URL"):
        read.require(needed, "needed where DESCANT_OIDC_ISSUER is set")
    client_id = read.value("DESCANT_OIDC_CLIENT_ID", "", _text)
    secret = read.optional_secret("DESCANT_OIDC_CLIENT_SECRET", _text)
    return OidcConfig(issuer=issuer, client_id=client_id, client_secret=secret)


def database_url(env: Mapping[str, str]) -> Secret:
    """DESCANT_DATABASE_URL alone, for what needs nothing else. Raises ConfigError."""
    read = _EnvironmentReader(env)
    url = read.secret("DESCANT_DATABASE_URL", _postgres_url)
    read.raise_problems()
    return url


class _EnvironmentReader:
    """Reads variables, collecting what is wrong with them instead of stopping at the first."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._problems: list[str] = []

    def value(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        text = self._env.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self._problems.append(f"{name}={text!r}: {error}")
            return default

    def secret(self, name: str, check: Callable[[str], str]) -> Secret:
        """A secret of its own variable or of the file that NAME_FILE names. Problems never quote the text."""
        try:
            return Secret(check(self._secret_text(name)))
        except ValueError as error:
            self._problems.append(f"{name}: {error}")
            return Secret("")

    def optional_secret(self, name: str, check: Callable[[str], str]) -> Secret | None:
        given = self._env.get(name, "").strip() or self._env.get(f"{name}_FILE", "").strip()
        return self.secret(name, check) if given else None

    def require(self, name: str, reason: str) -> None:
        if not self._env.get(name, "").strip():
            self._problems.append(f"{name}: missing; {reason}")

    def _secret_text(self, name: str) -> str:
        text, path = self._env.get(name, "").strip(), self._env.get(f"{name}_FILE", "").strip()
        if text and path:
            raise ValueError(f"set it or {name}_FILE, not both")
        if path:
            text = _read_secret_file(path)
        if not text:
            raise ValueError(f"missing; set it, or {name}_FILE to the path of a file that holds it")
        return text

    def raise_problems(self) -> None:
        if self._problems:
            raise ConfigError("The configuration is not usable:\n" + "\n".join(f"  {line}" for line in self._problems))


def _read_secret_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"cannot read the file {path}: {reason}") from None


def _postgres_url(text: str) -> str:
    scheme, has_path = _scheme_and_path(text)
    if scheme not in {"postgresql", "postgres", "postgresql+asyncpg"} or not has_path:
        raise ValueError("must look like postgresql://user:password@host:5432/database")
    return text


def _valkey_url(text: str) -> str:
    if _scheme_and_path(text)[0] not in {"redis", "rediss", "valkey", "valkeys", "unix"}:
        raise ValueError("must look like redis://host:6379/0")
    return text


def _scheme_and_path(url: str) -> tuple[str, bool]:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a URL; a password with special characters must be percent-encoded") from None
    return parts.scheme, len(parts.path) > 1


def _at_least(length: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        if len(text) < length:
            raise ValueError(f"has {len(text)} characters; at least {length} are needed (try: openssl rand -hex 32)")
        return text

    return check


def _text(text: str) -> str:
    return text


def _port(text: str) -> int:
    if text.startswith(KUBERNETES_SERVICE_LINK):
        # Kubernetes sets <SERVICE>_PORT in every pod, so a service named descant-gateway collides with this name.
        raise ValueError("this is a Kubernetes service link; set enableServiceLinks: false on the pod")
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= 65535:
        raise ValueError("must be a port number from 0 to 65535")
    return number


def _positive_int(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise ValueError("must be a whole number above 0")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 86_400:
        raise ValueError("must be a number of seconds above 0, at most a day")
    return number


def _seconds_or_none(text: str) -> float:
    return 0.0 if text.strip("0.") == "" else _seconds(text)


def _hours(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 24 * 90:
        raise ValueError("must be a number of hours above 0, at most 90 days")
    return number


def _yes_or_no(text: str) -> bool:
    answers = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in answers:
        raise ValueError("must be true or false")
    return answers[text.lower()]


def _networks(text: str) -> Networks:
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"{error}; write 10.0.0.0/8,2001:db8::/32") from None


def _https_url(text: str) -> str:
    """https, or http on this machine only: tokens go over it."""
    parts = urlsplit(text)
    is_local = parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost", "::1"}
    if not parts.hostname or not (parts.scheme == "https" or is_local):
        raise ValueError("must look like https://host; http only for this machine")
    return text.rstrip("/")


def _http_url(text: str) -> str:
    if urlsplit(text).scheme not in {"http", "https"} or not urlsplit(text).hostname:
        raise ValueError("must look like http://collector:4318/v1/traces")
    return text


def _origin(text: str) -> str:
    url = _https_url(text)
    if urlsplit(url).path or urlsplit(url).query:
        raise ValueError("must be scheme, host and port only, such as https://llm.example.com")
    return url


def _outage(text: str) -> Outage:
    try:
        return Outage(text.lower())
    except ValueError:
        raise ValueError(f"must be one of {', '.join(Outage)}") from None


def _log_level(text: str) -> str:
    levels = ("debug", "info", "warning", "error")
    if text.lower() not in levels:
        raise ValueError(f"must be one of {', '.join(levels)}")
    return text.lower()
