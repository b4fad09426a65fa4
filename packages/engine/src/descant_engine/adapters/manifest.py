"""LoRA adapters in PEFT's format: what is in the folder, and whether we can serve it exactly.

A manifest is all the engine needs to know to place an adapter; the tensors are read later, by the runner, and with
them the identity of its content.
"""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple


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


class FileStamp(NamedTuple):
    """What tells one state of a file from another without reading it."""

    size: int
    modified_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """One registration of an adapter: where it is, and what shape it has. Its weights need not have been read."""

    digest: str
    """Names the registration, by place, configuration and stamp: files that were written over give another one."""
    path: Path
    """The safetensors file."""
    modules: tuple[ModuleLora, ...]
    """Sorted by (layer, module)."""
    file_stamp: FileStamp | None = None
    """Of the safetensors file when its header was read; None if there is no such file."""
    config_digest: str = ""
    """sha256 of adapter_config.json, hex."""
    content_digest: str | None = None
    """The identity: equal ones mean equal content. Known once the weights have been read for the first time."""

    @property
    def max_lora_rank(self) -> int:
        return max((module.lora_rank for module in self.modules), default=0)
