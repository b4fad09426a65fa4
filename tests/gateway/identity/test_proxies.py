"""Only what trusted proxies wrote says where a request comes from."""

from ipaddress import ip_network

import pytest

from descant_gateway.identity.proxies import TrustedProxies

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def address(peer: str | None, *forwarded: str, proxies: tuple = PROXIES) -> str | None:
    headers = [(b"host", b"gateway"), *((b"x-forwarded-for", text.encode("latin-1")) for text in forwarded)]
    scope = {"client": None if peer is None else (peer, 1), "headers": headers}
    return TrustedProxies(proxies).client_address(scope)


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.9.9.9, 198.51.100.1", "10.0.0.2"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("fd00::1", [" 198.51.100.1 "], "198.51.100.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["", ","], "10.0.0.1"),
        ("10.0.0.1", ["nonsense"], "nonsense"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (None, ["198.51.100.1"], None),
    ],
)
def test_the_first_address_from_the_right_that_is_no_proxy(
    peer: str | None, forwarded: list[str], expected: str | None
) -> None:
    assert address(peer, *forwarded) == expected


def test_without_trusted_proxies_nothing_is_read() -> None:
    assert address("10.0.0.1", "198.51.100.1", proxies=()) == "10.0.0.1"
