import pytest

from descant_engine.cache.block_pool import BlockHash, BlockPool, count_holders


def _hash(number: int) -> BlockHash:
    return BlockHash(bytes([number]))


def test_blocks_are_distinct_and_counted() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(2), pool.allocate(3)
    assert {*first, *second} == set(range(5))
    assert pool.num_free_blocks == 0
    pool.check_integrity(count_holders([first, second]))


@pytest.mark.parametrize("count", [1, 4])
def test_more_than_is_free_is_refused(count: int) -> None:
    pool = BlockPool(3)
    pool.allocate(4 - count)
    with pytest.raises(ValueError, match=rf"{count} blocks asked of a pool with {count - 1} free"):
        pool.allocate(count)


def test_a_pool_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)


def test_a_cached_block_is_found_while_held_and_after() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.cache(block, _hash(1))
    assert pool.find(_hash(1)) == block
    pool.acquire(block)
    pool.release([block])
    pool.check_integrity({block: 1})
    pool.release([block])
    assert pool.find(_hash(1)) == block
    pool.acquire(block)
    pool.check_integrity({block: 1})


def test_blocks_without_content_go_before_cached_ones_and_those_longest_unused_first() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    for number, block in enumerate(blocks):
        pool.cache(block, _hash(number))
    pool.age = 7
    pool.release([blocks[2]])
    pool.age = 8
    pool.release([blocks[0], blocks[1]])
    assert pool.num_empty_blocks == 1
    assert pool.coldest_cached_at == 7
    (spare,) = pool.allocate(1)
    assert spare not in blocks
    assert [pool.allocate(1)[0] for _ in range(3)] == [blocks[2], blocks[0], blocks[1]]
    assert all(pool.find(_hash(number)) is None for number in range(3))


def test_of_two_equal_blocks_the_first_is_found() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.cache(first, _hash(1))
    pool.cache(second, _hash(1))
    assert pool.find(_hash(1)) == first
    pool.release([first, second])
    assert pool.num_empty_blocks == 1
    pool.check_integrity({})


def test_releasing_too_often_is_an_error() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.release([block])
    with pytest.raises(ValueError, match=f"block {block} was released more often"):
        pool.release([block])


def test_integrity_notices_a_leak() -> None:
    pool = BlockPool(2)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="holders"):
        pool.check_integrity({})
