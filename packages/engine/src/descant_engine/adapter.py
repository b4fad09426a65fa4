"""LoRA adapters in PEFT's format: what is in the folder, and whether we can serve it exactly.

A manifest is all the engine needs to know to place an adapter; the tensors are read later, by the runner.
"""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class TargetModule(IntEnum):
    """The linear layers an adapter may change, in the order of the runner's tables."""

    Q_PROJ = 0
    K_PROJ = 1
    V_PROJ = 2
    O_PROJ = 3
    GATE_PROJ = 4
    UP_PROJ = 5
    DOWN_PROJ = 6


@dataclass(frozen=True, slots=True)
class ModuleLora:
    """One adapted linear layer: y += scaling * (x @ lora_a.T) @ lora_b.T."""

    layer: int
    module: TargetModule
    lora_rank: int
    scaling: float
    """alpha / r, or alpha / sqrt(r) with rsLoRA; rank_pattern and alpha_pattern applied."""
    lora_a_key: str
    """Name of the [lora_rank, in_features] tensor in the safetensors file."""
    lora_b_key: str
    """Name of the [out_features, lora_rank] tensor."""


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """An adapter's identity and shape. Equal digests mean equal content."""

    digest: str
    """sha256 over adapter_config.json and the weight file, hex."""
    path: Path
    """The safetensors file."""
    modules: tuple[ModuleLora, ...]
    """Sorted by (layer, module)."""
    file_stamp: tuple[int, int] | None = None
    """Size and modification time (ns) of the safetensors file when its digest was taken; None if it is not a file."""

    @property
    def max_lora_rank(self) -> int:
        return max((module.lora_rank for module in self.modules), default=0)
