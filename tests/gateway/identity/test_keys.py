import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant_gateway.config import Secret
from descant_gateway.identity import keys

PEPPER = "p" * 32
BASE62 = st.sampled_from(keys.ALPHABET)
PARSED = st.builds(
    keys.ParsedKey,
    st.text(BASE62, min_size=keys.PUBLIC_ID_LENGTH, max_size=keys.PUBLIC_ID_LENGTH),
    st.text(BASE62, min_size=keys.SECRET_LENGTH, max_size=keys.SECRET_LENGTH),
)


def test_a_generated_key_has_the_documented_form_and_160_bits_or_more() -> None:
    text = keys.generate().text
    assert re.fullmatch(r"dsc_[0-9A-Za-z]{12}_[0-9A-Za-z]{46}", text)
    assert len(keys.ALPHABET) ** keys.SECRET_LENGTH > 2**160


def test_generated_keys_differ_everywhere() -> None:
    made = [keys.generate() for _ in range(200)]
    assert len({key.public_id for key in made}) == len({key.secret for key in made}) == 200
    for position in range(keys.SECRET_LENGTH):
        assert len({key.secret[position] for key in made}) > 20


@given(PARSED)
def test_what_is_written_is_read(key: keys.ParsedKey) -> None:
    assert keys.parse(key.text) == key


@given(PARSED, st.data())
def test_one_changed_character_is_refused(key: keys.ParsedKey, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(key.text) - 1))
    other = data.draw(BASE62.filter(lambda char: char != key.text[position]))
    with pytest.raises(keys.MalformedKey):
        keys.parse(key.text[:position] + other + key.text[position + 1 :])


@given(PARSED, st.integers(0, keys.SECRET_LENGTH - 2))
def test_two_swapped_characters_are_refused(key: keys.ParsedKey, position: int) -> None:
    first, second = key.secret[position : position + 2]
    swapped = key.secret[:position] + second + first + key.secret[position + 2 :]
    text = key.text.replace(key.secret, swapped)
    if first == second:
        assert keys.parse(text) == key
    else:
        with pytest.raises(keys.MalformedKey, match="checksum"):
            keys.parse(text)


@given(st.one_of(st.text(), st.text().map(lambda text: f"dsc_{text}")))
def test_any_other_text_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(keys.MalformedKey) as refusal:
        keys.parse(text)
    assert len(text) < 8 or text not in str(refusal.value)


@pytest.mark.parametrize("change", [str.strip, "{} ".format, "{}\n".format, " {}".format, str.upper, str.swapcase])
def test_only_the_exact_text_is_a_key(change: Callable[[str], str]) -> None:
    text = keys.generate().text
    if change(text) == text:
        assert keys.parse(change(text)).text == text
    else:
        with pytest.raises(keys.MalformedKey):
            keys.parse(change(text))


@pytest.mark.parametrize("digit", ["٣", "３", "é"])
def test_digits_of_other_scripts_are_no_base62(digit: str) -> None:
    text = keys.generate().text
    with pytest.raises(keys.MalformedKey):
        keys.parse(text[:6] + digit + text[7:])


@given(PARSED, PARSED, PARSED)
def test_each_stored_secret_matches_and_no_other(a: keys.ParsedKey, b: keys.ParsedKey, c: keys.ParsedKey) -> None:
    stored = [keys.hmac_secret(PEPPER, key.secret) for key in (a, b)]
    assert keys.secret_matches(PEPPER, a.secret, stored)
    assert keys.secret_matches(PEPPER, b.secret, stored)
    assert keys.secret_matches(PEPPER, c.secret, stored) == (c.secret in {a.secret, b.secret})
    assert not keys.secret_matches("q" * 32, a.secret, stored)
    assert not keys.secret_matches(PEPPER, a.secret, [])


def test_hmac_is_rfc_4231() -> None:
    """Test case 2 of RFC 4231: what is stored must not change between releases."""
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert keys.hmac_secret("Jefe", "what do ya want for nothing?").hex() == expected


def test_checksum_is_crc_32_in_base62() -> None:
    """CRC-32 of "123456789" is 0xCBF43926, the check value of its definition."""
    digits = keys.checksum("123456789")
    number = 0
    for digit in digits:
        number = number * 62 + keys.ALPHABET.index(digit)
    assert number == 0xCBF43926


def test_the_secret_is_in_no_repr() -> None:
    key = keys.generate()
    issued = keys.KeyIssuer(Secret(PEPPER)).issue()
    assert key.secret not in repr(key)
    assert issued.key.secret not in repr(issued)


def test_a_further_secret_keeps_the_public_id() -> None:
    issuer = keys.KeyIssuer(Secret(PEPPER))
    first = issuer.issue()
    second = issuer.issue(first.key.public_id)
    assert second.key.public_id == first.key.public_id
    assert second.key.secret != first.key.secret
    assert keys.secret_matches(PEPPER, second.key.secret, [first.secret_hmac, second.secret_hmac])
