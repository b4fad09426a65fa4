"""What may be the address of a backend or a webhook: a plain http URL, and not where clouds keep their credentials."""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from socket import inet_aton
from typing import Final
from urllib.parse import urlsplit

_LABEL: Final = re.compile(r"[0-9A-Za-z_]([0-9A-Za-z_-]{0,61}[0-9A-Za-z_])?")
"""Between the dots of a name. Names in other scripts are given as they are looked up: xn--..."""

_METADATA_SERVERS: Final = frozenset({"fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"})
"""Of clouds that do not keep to link-local addresses: Amazon's by IPv6, Alibaba's, Azure's, Oracle's."""
Networks = tuple[IPv4Network | IPv6Network, ...]

_NAT64: Final = IPv6Network("64:ff9b::/96")
_COMPATIBLE: Final = IPv6Network("::/96")


def normal_base_url(text: str) -> str:
    """The URL up to and without /v1. Raises ValueError with what is wrong, as the end of a sentence."""
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if url.scheme not in {"http", "https"} or not host:
        raise ValueError("must look like http://host:port")
    if url.username is not None or url.query or url.fragment or " " in text or not text.isprintable():
        raise ValueError("must hold no user, query, fragment, blank or control; give a credential as its API key")
    if not _is_host(host):
        raise ValueError(f"has {host[:80]!r} for a host, which no name server can look up")
    if keeps_credentials(host):
        raise ValueError("is a link-local address or another one where clouds keep their credentials")
    return text.rstrip("/").removesuffix("/v1")


def _is_host(host: str) -> bool:
    if ":" in host:
        return True  # an IPv6 address: urlsplit has parsed it
    labels = host.removesuffix(".").split(".")
    return all(_LABEL.fullmatch(label) for label in labels)


def keeps_credentials(host: str) -> bool:
    """In any form that a resolver takes for an address: 169.254.1.1 is 0xa9fe0101 and ::ffff:169.254.1.1 as well."""
    address = _address(host)
    return address is not None and _is_metadata(address)


def is_internal(host: str, allowed: Networks = ()) -> bool:
    """An address that is not of the public internet, in any of its forms: this machine, a private network, a link.

    Those of the `allowed` networks count as public, but for the ones where clouds keep their credentials.
    """
    address = _address(host)
    if address is None:
        return False
    is_public = address.is_global and not address.is_multicast
    return _is_metadata(address) or not (is_public or any(address in network for network in allowed))


def _is_metadata(address: IPv4Address | IPv6Address) -> bool:
    return address.is_link_local or str(address) in _METADATA_SERVERS


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """None for a name."""
    try:
        address = ip_address(inet_aton(host.removesuffix("."))) if ":" not in host else ip_address(host)
    except (ValueError, OSError):
        return None
    return (_embedded(address) or address) if isinstance(address, IPv6Address) else address


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for: mapped, compatible, 6to4, or through a NAT64 gateway."""
    if address.ipv4_mapped is not None or address.sixtofour is not None:
        return address.ipv4_mapped or address.sixtofour
    if address in _NAT64 or address in _COMPATIBLE:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
