"""Tags: from the header, from `metadata`, bounded."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from descant_gateway.usage.tags import MAX_NAME_LENGTH, MAX_TAGS, MAX_VALUE_LENGTH, Tags, read_tags
from descant_wire.errors import ApiError


def tags_of(header: bytes | None = None, metadata: object = None) -> Tags | None:
    headers = {} if header is None else {b"x-descant-tags": header}
    members = {} if metadata is None else {"metadata": Raw(msgspec.json.encode(metadata))}
    return read_tags(headers, members)


def test_nothing_given_is_no_tags() -> None:
    assert tags_of() is None
    assert tags_of(b"") is None
    assert tags_of(metadata={}) is None


def test_the_header_wins_over_metadata() -> None:
    assert tags_of(b" project = apollo , env=prod,", {"env": "test", "user": "u"}) == {
        "project": "apollo",
        "env": "prod",
        "user": "u",
    }


@pytest.mark.parametrize("header", [b"project", b"=x", b"a=" + b"v" * 129, b"n" * 65 + b"=x", b"\xff=x", b"a=\0"])
def test_a_malformed_header_is_refused_by_name(header: bytes) -> None:
    with pytest.raises(ApiError, match="x-descant-tags") as refusal:
        tags_of(header)
    assert refusal.value.status == 400


def test_too_many_tags_are_refused() -> None:
    with pytest.raises(ApiError, match="17 tags"):
        tags_of(b",".join(b"t%d=x" % number for number in range(MAX_TAGS + 1)))


def test_of_metadata_what_fits_becomes_tags_and_the_rest_is_the_backend_s() -> None:
    assert tags_of(metadata={"a": "x", "b": 1, "c": ["x"], "d": "v" * 129, "": "x", "e": None}) == {"a": "x"}
    assert tags_of(metadata=["a"]) is None
    assert len(tags_of(metadata={f"t{number:02}": "x" for number in range(40)}) or ()) == MAX_TAGS


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_whatever_comes_tags_are_bounded_or_refused(header: bytes, metadata: bytes) -> None:
    try:
        tags = read_tags({b"x-descant-tags": header}, {"metadata": Raw(metadata)})
    except ApiError:
        return
    assert len(tags or ()) <= MAX_TAGS
    assert all(0 < len(name) <= MAX_NAME_LENGTH and len(tags[name]) <= MAX_VALUE_LENGTH for name in tags or ())
