"""Random PEFT adapters by the thousand, on little disk.

An adapter's identity is the digest of its configuration and weights. The folders made here share a few weight files
(hard links) and differ in lora_alpha, so each is an adapter of its own: it computes something else, has a digest, a
slot and GPU blocks of its own, and is read, copied and evicted on its own. A thousand adapters of rank 16 on all
linears of an 8B model are 84 GB on the GPU and, with four weight files, 340 MB on disk. What this does not show is the
disk: linked files share the page cache, so for reads from a cold disk give each a file (`num_files` = `count`).
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from descant_engine.adapters.files import CONFIG_NAME, WEIGHTS_NAME
from descant_engine.adapters.manifest import TargetModule
from descant_engine.config import ModelShape

ALL_LINEAR = tuple(TargetModule)
_ATTENTION = (TargetModule.Q_PROJ, TargetModule.K_PROJ, TargetModule.V_PROJ, TargetModule.O_PROJ)
_ALPHA_STEP = 1 / 4096
"""Between neighbours' lora_alpha, relative: distinct in float32, and too little to matter for anything else."""


def write_adapters(
    root: Path,
    shape: ModelShape,
    count: int,
    *,
    lora_rank: int,
    modules: Sequence[TargetModule] = ALL_LINEAR,
    num_files: int = 4,
    device: str = "cpu",
) -> None:
    """Makes root/0000, root/0001, ... Those that are there already are kept."""
    shared = [_write_weights(root / "weights", shape, lora_rank, modules, seed, device) for seed in range(num_files)]
    for number in range(count):
        folder = root / f"{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).write_text(json.dumps(_peft_config(number, lora_rank, modules)))
        weights = folder / WEIGHTS_NAME
        if not weights.exists():
            os.link(shared[number % num_files], weights)


def modules_named(names: str) -> tuple[TargetModule, ...]:
    """ "all", "attention", or names like q_proj,v_proj."""
    known = {"all": ALL_LINEAR, "attention": _ATTENTION}
    return known.get(names) or tuple(TargetModule[name.strip().upper()] for name in names.split(","))


def _write_weights(
    root: Path, shape: ModelShape, lora_rank: int, modules: Sequence[TargetModule], seed: int, device: str
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    kinds = "".join(str(int(module)) for module in modules)
    path = root / f"rank{lora_rank}-modules{kinds}-{seed}.safetensors"
    if not path.exists():
        partial = path.with_suffix(".part")
        save_file(dict(_tensors(shape, lora_rank, modules, seed, device)), partial)
        partial.rename(path)
    return path


def _tensors(
    shape: ModelShape, lora_rank: int, modules: Sequence[TargetModule], seed: int, device: str
) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator(device).manual_seed(seed)
    for layer in range(shape.num_layers):
        for module in modules:
            parent = "self_attn" if module in _ATTENTION else "mlp"
            key = f"base_model.model.model.layers.{layer}.{parent}.{module.name.lower()}"
            in_features, out_features = shape.linear_shape(module)
            for matrix, size in (("A", (lora_rank, in_features)), ("B", (out_features, lora_rank))):
                values = torch.randn(size, generator=generator, device=device) * 0.02
                yield f"{key}.lora_{matrix}.weight", values.bfloat16().cpu()


def _peft_config(number: int, lora_rank: int, modules: Sequence[TargetModule]) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora_rank,
        "lora_alpha": 2 * lora_rank * (1 + number * _ALPHA_STEP),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [module.name.lower() for module in modules],
    }
