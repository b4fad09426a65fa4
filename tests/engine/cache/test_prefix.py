import pytest

from descant_engine.cache.prefix import chain_root, extend_chain

ROOT = chain_root("some-model", None, "")


@pytest.mark.parametrize(("num_tokens", "num_hashes"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2)])
def test_only_full_blocks_have_a_hash(num_tokens: int, num_hashes: int) -> None:
    assert len(extend_chain(ROOT, range(num_tokens), 4)) == num_hashes


def test_a_chain_may_be_extended_piece_by_piece() -> None:
    whole = extend_chain(ROOT, range(12), 4)
    head = extend_chain(ROOT, range(4), 4)
    assert head + extend_chain(head[-1], range(4, 12), 4) == whole


def test_a_hash_covers_everything_before_it() -> None:
    assert extend_chain(ROOT, [1, 2, 3, 4], 2)[1] != extend_chain(ROOT, [9, 2, 3, 4], 2)[1]
    assert extend_chain(ROOT, [1, 2, 1, 2], 2)[0] != extend_chain(ROOT, [1, 2, 1, 2], 2)[1]


def test_chains_start_apart_for_model_adapter_and_tenant() -> None:
    roots = {
        chain_root(*parts)
        for parts in [
            ("m", None, ""),
            ("n", None, ""),
            ("m", "a", ""),
            ("m", "base", ""),
            ("m", "", ""),
            ("m", None, "a"),
            ("m", "a", "a"),
            ("ma", None, ""),
        ]
    }
    assert len(roots) == 8


def test_large_token_ids_are_hashed() -> None:
    assert extend_chain(ROOT, [2**31, 2**40], 2) != extend_chain(ROOT, [2**31, 2**40 + 1], 2)
