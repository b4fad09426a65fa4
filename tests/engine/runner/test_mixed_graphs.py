"""Which graph a mixed step gets, and what its buffers hold. That replays compute the same, test_equality shows on a
GPU: most of its steps are small mixed ones."""

import torch

from descant_engine.adapters.manifest import TargetModule
from descant_engine.forward_context import AttentionInputs
from descant_engine.runner.cuda_graphs import ALL_MODULES, ATTENTION_MODULES, NO_MODULES
from descant_engine.runner.input_batch import InputBatch
from descant_engine.runner.mixed_graphs import MixedBuffers, MixedSize


def batch(query_lens: list[int], *, num_blocks: int = 3) -> InputBatch:
    num_tokens, num_requests = sum(query_lens), len(query_lens)
    return InputBatch(
        input_ids=torch.arange(100, 100 + num_tokens),
        positions=torch.arange(num_tokens),
        token_adapter_slot=torch.full((num_tokens,), 4, dtype=torch.int32),
        attention=AttentionInputs(
            query_start_loc=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32),
            seq_lens=torch.tensor(query_lens, dtype=torch.int32) + 7,
            block_tables=torch.full((num_requests, num_blocks), 9, dtype=torch.int32),
            slot_mapping=torch.arange(50, 50 + num_tokens),
            max_query_len=max(query_lens),
            max_seq_len=max(query_lens) + 7,
        ),
        logits_indices=torch.arange(num_requests),
        sample_rows=torch.empty(0, dtype=torch.int64),
        sample_positions=torch.empty(0, dtype=torch.int64),
    )


def test_the_smallest_size_that_has_room():
    assert MixedSize.of(batch([1, 63]), NO_MODULES) == MixedSize(64, 8, NO_MODULES)
    assert MixedSize.of(batch([1, 64]), frozenset({TargetModule.Q_PROJ})) == MixedSize(128, 8, ATTENTION_MODULES)
    assert MixedSize.of(batch([1] * 9 + [300]), frozenset({TargetModule.UP_PROJ})) == MixedSize(320, 16, ALL_MODULES)
    assert MixedSize.of(batch([2] * 20), NO_MODULES) == MixedSize(64, 32, NO_MODULES)


def test_large_steps_have_no_graph_and_adapters_have_one_for_longer():
    for modules, limit in ((NO_MODULES, 256), (ATTENTION_MODULES, 768)):
        assert MixedSize.of(batch([limit]), modules) == MixedSize(limit, 8, modules)
        assert MixedSize.of(batch([1, limit]), modules) is None


def test_every_step_that_has_a_graph_finds_it_among_those_captured_ahead():
    ahead = set(MixedSize.all_of(ALL_MODULES, max_num_seqs=48))
    sizes = {MixedSize.of(batch([2] * n + [rest]), ALL_MODULES) for n in range(48) for rest in (1, 60, 400, 672)}
    assert sizes <= ahead


def test_what_an_earlier_batch_left_belongs_to_nobody():
    buffers = MixedBuffers(64, 8, max_blocks=5, device=torch.device("cpu"))
    buffers.fill(batch([1, 20, 7, 30], num_blocks=5))
    small = batch([3, 1])
    buffers.fill(small)
    assert torch.equal(buffers.input_ids[:4], small.input_ids)
    assert torch.equal(buffers.positions[:4], small.positions)
    assert buffers.slot_mapping.tolist() == [50, 51, 52, 53] + [-1] * 60
    assert buffers.token_adapter_slot.tolist() == [4] * 4 + [-1] * 60
    assert buffers.query_start_loc.tolist() == [0, 3, 4] + [4] * 6
    assert buffers.seq_lens[:2].tolist() == [10, 8]
    assert torch.equal(buffers.block_tables[:2, :3], small.attention.block_tables)
