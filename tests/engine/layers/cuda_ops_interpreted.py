"""Run by test_cuda_ops in a process of its own, because Triton decides on import whether it interprets.

Computes the same steps with the CPU's operations and with the GPU's, kernels interpreted; prints a line for each model
with the largest difference of their logits, relative to the largest logit: first with the operations of steps launched
one by one, then with those of a captured graph, where adapters go beside the base, then with the deterministic ones.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from paged_model import AdapterTables, AdapterTensors, BlockPool, Conversation, PagedModel

from descant_engine.adapters.manifest import TargetModule
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig, ModelShape, ResolvedConfig
from descant_engine.layers import cuda_ops, ops
from descant_engine.layers.cpu_ops import CpuOps
from descant_engine.layers.deterministic_ops import DeterministicCudaOps
from descant_engine.models import attach_lora, load_model


def adapter(shape: ModelShape, rank: int) -> AdapterTensors:
    random = torch.Generator().manual_seed(rank)
    tensors: AdapterTensors = {}
    for layer in range(shape.num_layers):
        for module in TargetModule:
            in_features, out_features = shape.linear_shape(module)
            lora_a = torch.randn(rank, in_features, generator=random) * 0.2
            tensors[layer, module] = (lora_a, torch.randn(out_features, rank, generator=random) * 0.2, 0.7)
    return tensors


def logits_with(device_ops: ops.Ops, config: ResolvedConfig, adapters: AdapterTables) -> Tensor:
    ops._ops_for = lambda device_type, deterministic: device_ops  # type: ignore[assignment]
    model = load_model(config)
    attach_lora(model)
    paged = PagedModel(model, BlockPool(config.shape, block_size=16), adapters)
    conversations = [Conversation(list(range(1, 21)), slot) for slot in (-1, 0, 1)]
    logits: list[Tensor] = []
    for lengths in ((17, 1, 5), (1, 1, 1), (1, 3, 8)):
        logits += paged.step(*zip(conversations, lengths, strict=True))
    return torch.cat(logits)


class AsIfCaptured(cuda_ops.CudaOps):
    """Streams make things happen at the same time, which changes nothing here."""

    def _beside(self, x: Tensor) -> nullcontext[None]:  # type: ignore[override]
        return nullcontext()

    def _join(self, x: Tensor) -> None:
        pass


def differences(path: str) -> list[float]:
    config = resolve(EngineConfig(model=path, dtype="float32", device="cpu"))
    adapters = AdapterTables(config.shape)
    for slot, rank in enumerate((3, 9)):
        adapters.publish(slot, adapter(config.shape, rank))
    expected = logits_with(CpuOps(), config, adapters)
    found = []
    for device_ops in (cuda_ops.CudaOps(), AsIfCaptured(), DeterministicCudaOps()):
        cuda_ops._is_captured = lambda x, device_ops=device_ops: isinstance(device_ops, AsIfCaptured)  # type: ignore[misc]
        got = logits_with(device_ops, config, adapters)
        found.append(float((got - expected).abs().max() / expected.abs().max()))
    return found


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(*differences(path))
