import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant_gateway.config import Secret
from descant_gateway.sealing import Sealer, UnsealError

SEALER = Sealer(Secret("p" * 32))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_was_sealed_opens_and_no_two_seals_are_alike(text: str) -> None:
    first, second = SEALER.seal(text, name="engine"), SEALER.seal(text, name="engine")
    assert first != second
    assert SEALER.unseal(first, name="engine") == SEALER.unseal(second, name="engine") == text
    assert len(text) < 4 or text.encode() not in first


def test_another_name_pepper_or_byte_opens_nothing() -> None:
    sealed = SEALER.seal("sk-canary", name="engine")
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for sealer, data, name in (
        (SEALER, sealed, "other"),
        (Sealer(Secret("q" * 32)), sealed, "engine"),
        (SEALER, flipped, "engine"),
        (SEALER, sealed[:20], "engine"),
        (SEALER, sealed[:4], "engine"),
        (SEALER, b"", "engine"),
    ):
        with pytest.raises(UnsealError, match="DESCANT_KEY_PEPPER"):
            sealer.unseal(data, name=name)
