"""What is sealed opens for its team and its name alone; what was stored before is read as it is."""

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant_gateway.sealing import TeamCipher, UnsealError
from descant_gateway.store.vault import SEALED, Vault

TEAM = uuid4()
CIPHER = TeamCipher(TEAM, b"k" * 32)
SEALING, PLAIN = Vault(CIPHER, seals=True), Vault(CIPHER, seals=False)

contents = st.one_of(st.binary(max_size=200), st.binary(max_size=50).map(lambda rest: SEALED + rest))


@given(contents, st.booleans(), st.booleans())
def test_whatever_it_is_it_comes_back(content: bytes, seals: bool, seals_later: bool) -> None:
    """Also what looks as if it were sealed, and whatever the setting is by then."""
    stored = Vault(CIPHER, seals=seals).close(content, name="file-1 0")
    assert Vault(CIPHER, seals=seals_later).open(stored, name="file-1 0") == content
    assert stored != content or not seals


def test_what_was_stored_before_is_read_as_it_is() -> None:
    for content in (b'{"a": 1}', b"[]", b"", b"\x00\x01"):
        assert SEALING.open(content, name="x") == content
    assert PLAIN.close(b"plain", name="x") == b"plain"


def test_another_team_name_or_byte_opens_nothing() -> None:
    stored = SEALING.close(b"content", name="file-1 0")
    flipped = stored[:-1] + bytes([stored[-1] ^ 1])
    another_team = Vault(TeamCipher(uuid4(), b"k" * 32), seals=True)
    another_key = Vault(TeamCipher(TEAM, b"j" * 32), seals=True)
    for vault, data, name in (
        (another_team, stored, "file-1 0"),
        (another_key, stored, "file-1 0"),
        (SEALING, stored, "file-1 1"),
        (SEALING, flipped, "file-1 0"),
        (SEALING, SEALED, "file-1 0"),
    ):
        with pytest.raises(UnsealError, match="doesn't open"):
            vault.open(data, name=name)
