from hypothesis import given
from hypothesis import strategies as st

from descant_engine.runner.adapter_memory import contiguous_runs


@given(st.sets(st.integers(0, 40), max_size=30))
def test_runs_cover_every_block_once_in_order_and_are_as_few_as_can_be(block_ids: set[int]) -> None:
    ordered = tuple(sorted(block_ids))
    runs = contiguous_runs(ordered)
    assert [first + i for _, first, count in runs for i in range(count)] == list(ordered)
    assert all(ordered[index] == first for index, first, _ in runs)
    assert len(runs) == sum(block_id - 1 not in block_ids for block_id in block_ids)
