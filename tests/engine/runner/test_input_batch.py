"""Rows and the tensors gathered from them, against the definitions in forward_context."""

import pytest
import torch

from descant_engine.runner.input_batch import StepRows, gather
from descant_engine.runner.request_states import RequestStates
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.plan import AdmittedRequest, ScheduledRequest, StepPlan

BLOCK = 4


def admitted(request_id: str, tokens: range, slot: int = -1) -> AdmittedRequest:
    return AdmittedRequest(request_id, tuple(tokens), len(tokens), SamplingParams(), 0, (), slot)


def plan(*, removed=(), admitted=(), scheduled=()) -> StepPlan:
    return StepPlan(0, (), tuple(removed), tuple(admitted), tuple(scheduled))


@pytest.fixture
def states() -> RequestStates:
    return RequestStates(3, 32, BLOCK, torch.device("cpu"))


def test_a_prefill_chunk_and_a_decode_share_a_batch(states):
    states.apply(
        plan(
            admitted=[admitted("a", range(100, 110)), admitted("b", range(200, 203), slot=5)],
            scheduled=[ScheduledRequest("a", 0, 4, (7,), False), ScheduledRequest("b", 0, 3, (2,), True)],
        )
    )
    step = (ScheduledRequest("a", 4, 6, (9, 1), True), ScheduledRequest("b", 3, 1, (), True))
    states.append_sampled(torch.tensor([states.row("b")]), torch.tensor([3]), torch.tensor([77]))
    states.apply(plan(scheduled=step))
    rows = StepRows.of(step, states)
    batch = gather(rows, states, BLOCK)

    assert batch.input_ids.tolist() == [*range(104, 110), 77]
    assert batch.positions.tolist() == [4, 5, 6, 7, 8, 9, 3]
    assert batch.attention.query_start_loc.tolist() == [0, 6, 7]
    assert batch.attention.seq_lens.tolist() == [10, 4]
    assert batch.attention.block_tables[0].tolist() == [7, 9, 1]
    assert batch.attention.block_tables[1, 0].item() == 2
    assert batch.attention.slot_mapping.tolist() == [36, 37, 38, 39, 4, 5, 11]
    assert (batch.attention.max_query_len, batch.attention.max_seq_len) == (6, 10)
    assert batch.token_adapter_slot.tolist() == [-1] * 6 + [5]
    assert rows.slots_in_batch == (5,)
    assert batch.logits_indices.tolist() == [5, 6]
    assert rows.sampled_request_ids == ("a", "b")
    assert batch.sample_positions.tolist() == rows.seq_lens.tolist() == [10, 4]
    assert not rows.is_decode


def test_a_chunk_that_ends_before_the_last_token_gives_no_sample(states):
    step = (ScheduledRequest("a", 0, 4, (0,), False),)
    states.apply(plan(admitted=[admitted("a", range(9))], scheduled=step))
    rows = StepRows.of(step, states)
    assert gather(rows, states, BLOCK).logits_indices.numel() == 0
    assert rows.sampled_request_ids == ()


def test_rows_come_back_and_start_empty(states):
    states.apply(plan(admitted=[admitted(name, range(3)) for name in "abc"]))
    states.apply(plan(removed=["b"], admitted=[admitted("d", range(50, 55))]))
    assert len({states.row(name) for name in "acd"}) == 3
    step = (ScheduledRequest("d", 0, 5, (8, 6), True),)
    states.apply(plan(scheduled=step))
    batch = gather(StepRows.of(step, states), states, BLOCK)
    assert batch.attention.block_tables.tolist() == [[8, 6]]
    assert batch.input_ids.tolist() == list(range(50, 55))
