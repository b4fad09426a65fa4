import pytest

from descant_wire.internal import (
    IDENTITY_HEADER,
    PRIORITY_HEADER,
    TENANT_HEADER,
    Identity,
    NotSigned,
    identity_headers,
    read_identity,
)

KEY = b"k" * 32


def test_signed_headers_say_whose_a_request_is() -> None:
    headers = identity_headers(KEY, "tenant", -3, "charge")
    assert read_identity(headers, KEY) == Identity("tenant", -3, "charge", is_signed=True)
    assert KEY.decode() not in "".join(headers.values())


def test_without_a_key_nobody_s_word_counts() -> None:
    assert read_identity(identity_headers(KEY, "tenant", -3, "charge"), None) == Identity(charge="charge")
    assert read_identity({}, KEY) == Identity()


@pytest.mark.parametrize(
    "change",
    [
        {TENANT_HEADER: "other"},
        {PRIORITY_HEADER: "-4"},
        {PRIORITY_HEADER: "\u0663"},
        {IDENTITY_HEADER: ""},
        {IDENTITY_HEADER: "é" * 64},
        {"x-descant-charge": "other"},
    ],
)
def test_changed_headers_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(NotSigned, match="DESCANT_INTERNAL_KEY"):
        read_identity(identity_headers(KEY, "tenant", -3, "charge") | change, KEY)


def test_unsigned_headers_are_refused_each_alone() -> None:
    for name in (TENANT_HEADER, PRIORITY_HEADER, IDENTITY_HEADER):
        with pytest.raises(NotSigned):
            read_identity({name: "1"}, KEY)
