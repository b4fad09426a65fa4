"""Every architecture against transformers, in float32, however the tokens are cut into steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig
from descant_engine.models import load_model

from ..paged_model import BlockPool, Conversation, PagedModel  # noqa: TID252

TOLERANCE = {"rtol": 1e-3, "atol": 2e-3}
"""On logits of magnitude 10; a wrong mask, position or head is off by ones."""


@dataclass(frozen=True)
class Variant:
    name: str
    family: str
    config: dict[str, object] = field(default_factory=dict)


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = [
    Variant("llama", "llama"),
    Variant("llama-tied", "llama", {"tied": True}),
    Variant("llama-biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Variant("llama-one-head-each", "llama", {"num_key_value_heads": 6}),
    Variant("llama3-rope", "llama", {"rope_parameters": LLAMA3_ROPE}),
    Variant("linear-rope", "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    Variant("dynamic-rope", "llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    Variant("yarn-rope", "qwen2", {"rope_parameters": YARN_ROPE}),
    Variant("mistral", "mistral"),
    Variant("qwen2", "qwen2"),
    Variant("qwen2-tied", "qwen2", {"tied": True}),
    Variant("qwen3", "qwen3"),
    Variant("qwen3-biases", "qwen3", {"attention_bias": True}),
]


@dataclass(frozen=True)
class Pair:
    ours: PagedModel
    theirs: torch.nn.Module

    def expected(self, token_ids: list[int]) -> Tensor:
        with torch.inference_mode():
            return self.theirs(torch.tensor([token_ids])).logits[0]


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def pair(request: pytest.FixtureRequest, random_model: Callable[..., Path]) -> Pair:
    path = random_model(request.param.family, **request.param.config)
    return open_pair(path)


def open_pair(path: Path) -> Pair:
    config = resolve(EngineConfig(model=str(path), dtype="float32", device="cpu"))
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return Pair(PagedModel(load_model(config), BlockPool(config.shape)), theirs)


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 264, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize(
    "chunks",
    [[41], [16, 16, 9], [1] * 3 + [5, 33], [37, 1, 1, 1, 1]],
    ids=["whole", "chunked", "odd", "prefill-decode"],
)
def test_logits_equal_transformers(pair: Pair, chunks: list[int]) -> None:
    token_ids = tokens(41)
    torch.testing.assert_close(pair.ours.logits(token_ids, chunks), pair.expected(token_ids), **TOLERANCE)


def test_requests_of_a_mixed_batch_do_not_touch_each_other(pair: Pair) -> None:
    """Decode steps, a fresh prefill and a later chunk in one batch, three steps long."""
    first, second, third, fourth = (Conversation(tokens(30, seed)) for seed in range(4))
    conversations = [first, second, third, fourth]
    got: dict[int, list[Tensor]] = {index: [] for index in range(4)}

    def step(*lengths: int) -> None:
        parts = [(conversations[index], n) for index, n in enumerate(lengths) if n]
        indices = [index for index, n in enumerate(lengths) if n]
        for index, logits in zip(indices, pair.ours.step(*parts), strict=True):
            got[index].append(logits)

    step(9, 0, 12, 0)
    step(1, 17, 1, 0)
    step(1, 5, 16, 2)
    step(1, 1, 1, 1)
    step(2, 0, 0, 27)
    for index, conversation in enumerate(conversations):
        expected = pair.expected(conversation.token_ids)[: conversation.num_computed]
        torch.testing.assert_close(torch.cat(got[index]), expected, **TOLERANCE)
