"""Rotary position embedding (arXiv 2104.09864) and the ways to stretch it to longer contexts."""

import math

import torch
from torch import Tensor, nn

from descant_engine.config import RopeScaling


class Rotary(nn.Module):
    """One table of cosines and sines, shared by all layers of a model."""

    def __init__(self, head_dim: int, max_position: int, rope: RopeScaling) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(max_position, dtype=torch.float32), inverse_frequencies(head_dim, rope))
        table = torch.cat([angles.cos(), angles.sin()], dim=-1) * rope.attention_factor
        self.register_buffer("cos_sin", table, persistent=False)

    cos_sin: Tensor
    """[max_position, head_dim] float32: cosines, then sines."""


def inverse_frequencies(head_dim: int, rope: RopeScaling) -> Tensor:
    """[head_dim / 2] float32: how far each pair of channels turns per position, in radians."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.kind:
        case "default" | "dynamic":
            # NTK-aware scaling changes nothing up to the trained length, and max_position goes no further.
            return frequencies
        case "linear":
            return frequencies / rope.factor
        case "llama3":
            return _llama3(frequencies, rope)
        case "yarn":
            return _yarn(frequencies, head_dim, rope)


def _llama3(frequencies: Tensor, rope: RopeScaling) -> Tensor:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between are blended."""
    turns = rope.original_max_position * frequencies / (2 * math.pi)
    kept = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * frequencies / rope.factor + kept * frequencies


def _yarn(frequencies: Tensor, head_dim: int, rope: RopeScaling) -> Tensor:
    """YaRN, arXiv 2309.00071, section 3.2: "NTK-by-parts"."""

    def channel_with(num_turns: float) -> float:
        wavelength = rope.original_max_position / (num_turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    first = max(math.floor(channel_with(rope.beta_fast)), 0)
    last = min(math.ceil(channel_with(rope.beta_slow)), head_dim - 1)
    channels = torch.arange(len(frequencies), dtype=torch.float32)
    stretched = ((channels - first) / max(last - first, 0.001)).clamp(0, 1)
    return stretched * frequencies / rope.factor + (1 - stretched) * frequencies
