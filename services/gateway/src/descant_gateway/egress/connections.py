"""Connections to addresses that are data: backends and webhooks. What a name means is looked at before it is used."""

import socket
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.connector import AddrInfoType
from aiohttp.resolver import ThreadedResolver

from descant_gateway.egress.address import Networks, is_internal, keeps_credentials

DNS_CACHE_S: Final = 30

Refusal = Callable[[str], str]
"""Why nothing may connect to this address; empty if it may."""


def for_backends(address: str) -> str:
    """Operators set backends: in the house or not, but never where a cloud keeps its credentials."""
    return "where clouds keep their credentials" if keeps_credentials(address) else ""


def for_webhooks(allowed: Networks) -> Refusal:
    """Tenants set webhooks: only the public internet, and what the operator opened to them."""

    def refuse(address: str) -> str:
        return "an internal address, which webhooks may not reach" if is_internal(address, allowed) else ""

    return refuse


class ConnectionUse:
    """What a request was sent on: a fresh connection, or one that was kept from requests before it."""

    __slots__ = ("is_fresh",)

    def __init__(self) -> None:
        self.is_fresh = False


_use: Final[ContextVar[ConnectionUse | None]] = ContextVar("connection_use", default=None)


def watch_connection() -> ConnectionUse:
    """Of the next request that this task sends through a `guarded_connector`.

    aiohttp itself tells it to traces only, and those cost every request more than this.
    """
    use = ConnectionUse()
    _use.set(use)
    return use


class GuardedResolver(ThreadedResolver):
    """Refuses names that mean an address that is refused, however the name server spells it."""

    def __init__(self, refusal: Refusal = for_backends) -> None:
        super().__init__()
        self._refusal = refusal

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError, as for a name that nobody knows. What was looked up is what gets connected to."""
        found = await super().resolve(host, port, family)
        for each in found:
            if reason := self._refusal(each["host"]):
                raise OSError(f"{host} means {each['host']}, {reason}")
        return found


def guarded_connector(refusal: Refusal, *, keepalive_s: float) -> aiohttp.TCPConnector:
    """Without a limit: admission decides how much is in flight, a hidden queue here would only add delay."""

    def open_socket(info: AddrInfoType) -> socket.socket:
        """The last look, at the very address: a URL that holds an address is never looked up."""
        family, kind, protocol, _, place = info
        if reason := refusal(str(place[0])):
            raise OSError(f"{place[0]} is {reason}")
        if (use := _use.get()) is not None:
            use.is_fresh = True
        return socket.socket(family=family, type=kind, proto=protocol)

    return aiohttp.TCPConnector(
        limit=0,
        keepalive_timeout=keepalive_s,
        ttl_dns_cache=DNS_CACHE_S,
        resolver=GuardedResolver(refusal),
        socket_factory=open_socket,
    )
