"""Where a request comes from, when proxies stand before the gateway.

Only what a trusted proxy wrote is believed: X-Forwarded-For is read from the right, past the trusted proxies, to the
first address that is not one. Without trusted proxies it is not read at all.
"""

from collections.abc import Iterable
from ipaddress import ip_address

from litestar.types import HTTPScope

from descant_gateway.config import Networks


class TrustedProxies:
    """The networks whose X-Forwarded-For is believed."""

    def __init__(self, networks: Networks = ()) -> None:
        self._networks = networks

    def client_address(self, scope: HTTPScope) -> str | None:
        client = scope["client"]
        peer = client[0] if client else None
        if not self._networks or peer is None:
            return peer
        return self._first_untrusted(peer, scope["headers"])

    def _first_untrusted(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Every header of the name counts, in order: some proxies add one instead of extending it."""
        forwarded = b",".join(value for name, value in headers if name == b"x-forwarded-for")
        hops = [hop.strip() for hop in forwarded.decode("latin-1").split(",") if hop.strip()]
        address = peer
        while hops and self._is_trusted(address):
            address = hops.pop()
        return address

    def _is_trusted(self, text: str) -> bool:
        try:
            address = ip_address(text)
        except ValueError:
            return False
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)
