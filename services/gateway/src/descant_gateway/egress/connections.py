"""Connections to addresses that are data: backends and webhooks. What a name means is looked at before it is used."""

import socket
from typing import Final

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver

from descant_gateway.egress.address import keeps_credentials

DNS_CACHE_S: Final = 30


class GuardedResolver(ThreadedResolver):
    """Refuses names that mean an address where clouds keep their credentials, however the name server spells it."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError, as for a name that nobody knows. What was looked up is what gets connected to."""
        found = await super().resolve(host, port, family)
        for each in found:
            if keeps_credentials(each["host"]):
                raise OSError(f"{host} means {each['host']}, where clouds keep their credentials")
        return found


def guarded_connector(*, keepalive_s: float) -> aiohttp.TCPConnector:
    """Without a limit: admission decides how much is in flight, a hidden queue here would only add delay."""
    return aiohttp.TCPConnector(
        limit=0, keepalive_timeout=keepalive_s, ttl_dns_cache=DNS_CACHE_S, resolver=GuardedResolver()
    )
