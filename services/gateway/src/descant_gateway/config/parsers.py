"""What a setting's text may be. Each raises ValueError with what it must look like."""

from collections.abc import Callable
from ipaddress import ip_network
from typing import Final
from urllib.parse import urlsplit

from descant_gateway.egress.address import Networks

KUBERNETES_SERVICE_LINK: Final = "tcp://"


def postgres_url(text: str) -> str:
    scheme, has_path = _scheme_and_path(text)
    if scheme not in {"postgresql", "postgres", "postgresql+asyncpg"} or not has_path:
        raise ValueError("must look like postgresql://user:password@host:5432/database")
    return text


def valkey_url(text: str) -> str:
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


def at_least(length: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        if len(text) < length:
            raise ValueError(f"has {len(text)} characters; at least {length} are needed (try: openssl rand -hex 32)")
        return text

    return check


def any_text(text: str) -> str:
    return text


def port(text: str) -> int:
    if text.startswith(KUBERNETES_SERVICE_LINK):
        # Kubernetes sets <SERVICE>_PORT in every pod, so a service named descant-gateway collides with this name.
        raise ValueError("this is a Kubernetes service link; set enableServiceLinks: false on the pod")
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= 65535:
        raise ValueError("must be a port number from 0 to 65535")
    return number


def positive_int(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise ValueError("must be a whole number above 0")
    return number


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 86_400:
        raise ValueError("must be a number of seconds above 0, at most a day")
    return number


def seconds_or_none(text: str) -> float:
    return 0.0 if text.strip("0.") == "" else seconds(text)


def hours(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 24 * 90:
        raise ValueError("must be a number of hours above 0, at most 90 days")
    return number


def yes_or_no(text: str) -> bool:
    answers = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in answers:
        raise ValueError("must be true or false")
    return answers[text.lower()]


def networks(text: str) -> Networks:
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"{error}; write 10.0.0.0/8,2001:db8::/32") from None


def https_url(text: str) -> str:
    """https, or http on this machine only: tokens go over it."""
    parts = urlsplit(text)
    is_local = parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost", "::1"}
    if not parts.hostname or not (parts.scheme == "https" or is_local):
        raise ValueError("must look like https://host; http only for this machine")
    return text.rstrip("/")


def http_url(text: str) -> str:
    if urlsplit(text).scheme not in {"http", "https"} or not urlsplit(text).hostname:
        raise ValueError("must look like http://collector:4318/v1/traces")
    return text


def origin(text: str) -> str:
    url = https_url(text)
    if urlsplit(url).path or urlsplit(url).query:
        raise ValueError("must be scheme, host and port only, such as https://llm.example.com")
    return url


def log_level(text: str) -> str:
    levels = ("debug", "info", "warning", "error")
    if text.lower() not in levels:
        raise ValueError(f"must be one of {', '.join(levels)}")
    return text.lower()
