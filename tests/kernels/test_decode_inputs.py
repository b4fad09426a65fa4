import pytest
import torch

from descant_kernels import RequestRows, decode_inputs, reference

BLOCK_SIZE, PADDING_ROW, MAX_BLOCKS = 16, 9, 300


@pytest.fixture
def requests(device: str) -> RequestRows:
    """Ten rows, the last of which pads."""
    block_tables = torch.randint(0, 1 << 20, (10, MAX_BLOCKS), dtype=torch.int32, device=device)
    token_ids = torch.randint(0, 128_000, (10, MAX_BLOCKS * BLOCK_SIZE + 1), device=device)
    return RequestRows(token_ids, block_tables, torch.arange(-1, 9, dtype=torch.int32, device=device))


@pytest.mark.parametrize(
    "places",
    [[(0, 0)], [(3, 15), (1, 16)], [(8, 4799), (0, 17), (2, 4095), (9, 0), (9, 0)], [(5, 4096), (6, 31), (7, 32)]],
    ids=["first", "ends of a block", "long, and padding", "others"],
)
def test_equals_the_reference(device: str, requests: RequestRows, places: list[tuple[int, int]]) -> None:
    rows, positions = torch.tensor(places, device=device).T.contiguous()
    actual = decode_inputs(rows, positions, requests, BLOCK_SIZE, PADDING_ROW)
    expected = reference.decode_inputs(rows, positions, requests, BLOCK_SIZE, PADDING_ROW)
    for index, position in enumerate(positions.tolist()):
        num_blocks = position // BLOCK_SIZE + 1
        assert torch.equal(actual.block_tables[index, :num_blocks], expected.block_tables[index, :num_blocks])
    for name in ("input_ids", "seq_lens", "slot_mapping", "adapter_slots"):
        got, wanted = getattr(actual, name), getattr(expected, name)
        assert got.dtype == wanted.dtype, name
        assert torch.equal(got, wanted), name
