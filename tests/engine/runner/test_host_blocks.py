from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from descant_engine.runner.host_blocks import HostBlocks
from descant_engine.runner.transfer import tensor_of

BLOCK_ELEMENTS = 8
NUM_BLOCKS = 12
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _blocks(*, is_pinned: bool = False, max_blocks: int = NUM_BLOCKS) -> HostBlocks:
    """Three chunks would hold `NUM_BLOCKS`, if `max_blocks` is a third of it."""
    return HostBlocks(BLOCK_ELEMENTS, torch.bfloat16, max_blocks=max_blocks, is_pinned=is_pinned)


def test_threads_never_share_a_block() -> None:
    blocks = _blocks(max_blocks=4)

    def take_and_give(count: int) -> None:
        for turn in range(50):
            mine = blocks.take(count)
            assert len(mine) == count
            assert all(first < second for first, second in pairwise(mine))
            mark = count * 1000 + turn
            for block_id in mine:
                blocks.words(block_id)[:] = mark
            assert all((blocks.words(block_id) == mark).all() for block_id in mine), "somebody else wrote here"
            blocks.give_back(mine)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(take_and_give, [1, 2, 3, 5]))


def test_what_was_given_back_is_used_again_before_there_is_more() -> None:
    blocks = _blocks(max_blocks=4)
    taken = [blocks.take(2) for _ in range(6)]
    blocks.give_back(taken[1])
    blocks.give_back(taken[4])
    assert {*blocks.take(4)} == {*taken[1], *taken[4]}
    assert {*blocks.take(1)}.isdisjoint(block_id for ids in taken for block_id in ids)


def test_new_blocks_hold_zeros() -> None:
    blocks = _blocks()
    assert all((blocks.words(block_id) == 0).all() for block_id in blocks.take(NUM_BLOCKS))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("max_blocks", [NUM_BLOCKS, 5, 1])
@given(data=st.data())
def test_blocks_arrive_in_the_pool_wherever_they_lie(device: str, max_blocks: int, data: st.DataObject) -> None:
    blocks = _blocks(is_pinned=device == "cuda", max_blocks=max_blocks)
    mine = data.draw(st.permutations(blocks.take(NUM_BLOCKS)))[:7]
    pool_blocks = data.draw(st.permutations(range(20)))[:7]
    if data.draw(st.booleans()):
        mine, pool_blocks = sorted(mine), sorted(pool_blocks)
    for index, block_id in enumerate(mine):
        tensor_of(blocks.words(block_id), torch.bfloat16)[:] = index + 1
    pool = torch.zeros(20, BLOCK_ELEMENTS, dtype=torch.bfloat16, device=device)
    blocks.copy_to(pool, tuple(pool_blocks), tuple(mine))
    for index, block_id in enumerate(pool_blocks):
        assert (pool[block_id] == index + 1).all()
    assert (pool != 0).all(dim=1).sum() == 7
