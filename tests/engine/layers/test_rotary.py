"""Frequencies against transformers' own, for every kind of stretching that its configs can name."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from descant_engine.checkpoint.config_file import parse_config
from descant_engine.checkpoint.model_config import model_shape
from descant_engine.layers.rotary import Rotary

ROPES: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
    },
    "yarn-tuned": {
        "rope_type": "yarn",
        "rope_theta": 50000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 2048,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.8,
    },
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "rope_theta": 50000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": 1.25,
    },
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_table_equals_transformers(rope: dict[str, object]) -> None:
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, head_dim=64, max_position_embeddings=16384, rope_parameters=rope
    )
    shape = model_shape(parse_config(config.to_dict()))
    table = Rotary(shape.head_dim, shape.max_position, shape.rope).cos_sin
    positions = torch.tensor([0, 1, 17, 4096, 16383])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    # cos and sin of angles near 16384 carry the rounding of the frequency, 16384 times over.
    torch.testing.assert_close(table[positions, :32], cos[0, :, :32], rtol=0, atol=3e-3)
    torch.testing.assert_close(table[positions, 32:], sin[0, :, :32], rtol=0, atol=3e-3)
    torch.testing.assert_close(table[positions[:3], :32], cos[0, :3, :32], rtol=0, atol=1e-5)
    torch.testing.assert_close(table[positions[:3], 32:], sin[0, :3, :32], rtol=0, atol=1e-5)
