import pytest
import torch

from descant_kernels import LoraSegments, reference, segment_tokens


def as_list(segments: LoraSegments) -> list[tuple[int, list[int]]]:
    bounds = zip(segments.slots.tolist(), segments.starts.tolist(), segments.lengths.tolist(), strict=True)
    order = segments.token_order.tolist()
    return [(slot, order[start : start + length]) for slot, start, length in bounds if length]


CASES = {
    "nothing": [],
    "all base": [-1] * 20,
    "one token": [3],
    "all one adapter": [5] * 50,
    "all distinct": list(range(40)),
    "segment borders": [2] * 16 + [1] * 17 + [-1] + [0] * 15,
    "interleaved": [0, -1, 7, 0, 7, 7, -1, 0, 2] * 9,
}


@pytest.mark.parametrize("slots", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("segment_size", [16, 64])
def test_equals_the_reference(device: str, slots: list[int], segment_size: int) -> None:
    token_adapter_slot = torch.tensor(slots, dtype=torch.int32, device=device)
    segments = segment_tokens(token_adapter_slot, segment_size=segment_size)
    assert as_list(segments) == reference.segment_tokens(token_adapter_slot, segment_size=segment_size)
    assert sorted(segments.token_order.tolist()) == list(range(len(slots)))
    assert segments.lengths.tolist() == sorted(segments.lengths.tolist(), key=lambda length: length == 0)


@pytest.mark.parametrize("seed", range(20))
def test_random_batches_fit_the_static_bound(device: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_slots, num_tokens = (int(torch.randint(1, high, (1,), generator=generator)) for high in (12, 200))
    slots = torch.randint(-1, num_slots, (num_tokens,), generator=generator, dtype=torch.int32).to(device)
    segments = segment_tokens(slots, max_slots=num_slots)
    assert segments.lengths.shape[0] <= num_tokens // 16 + num_slots + 1
    assert as_list(segments) == reference.segment_tokens(slots)
    assert int(segments.lengths.sum()) == num_tokens


def test_refuses_an_odd_segment_size(device: str) -> None:
    with pytest.raises(ValueError, match="got 24"):
        segment_tokens(torch.zeros(4, dtype=torch.int32, device=device), segment_size=24)


@pytest.mark.gpu
def test_can_be_captured_in_a_graph() -> None:
    slots = torch.full((256,), -1, dtype=torch.int32, device="cuda")
    segment_tokens(slots, max_slots=64)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        segments = segment_tokens(slots, max_slots=64)
    for seed in range(3):
        slots.copy_(torch.randint(-1, 64, (256,), generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        assert as_list(segments) == reference.segment_tokens(slots)
