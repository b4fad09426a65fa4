import pytest
import torch
from torch.nn import functional as F

from descant_engine.layers.sequences import PaddedSequences, Sequences, UnpaddedSequences


@pytest.mark.parametrize("lengths", [[1], [3, 3, 3], [1, 2, 2, 5, 8, 9, 16, 31]])
def test_each_sequence_attends_to_itself_alone(lengths: list[int]) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 2, 8)
    parts = [part.permute(1, 2, 0, 3) for part in qkv.split(lengths)]
    attended = [F.scaled_dot_product_attention(q, k, v) for q, k, v in parts]
    expected = torch.cat([part.transpose(0, 1).flatten(1) for part in attended])
    ways: tuple[Sequences, ...] = UnpaddedSequences(lengths), PaddedSequences(lengths, torch.device("cpu"))
    for sequences in ways:
        torch.testing.assert_close(sequences.attend(qkv), expected, atol=1e-5, rtol=1e-5)
