"""Which device's operations the layers being built are bound to."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

from descant_engine.layers.ops import Ops

_is_deterministic: ContextVar[bool] = ContextVar("descant_deterministic_ops", default=False)


@contextmanager
def deterministic_ops() -> Iterator[None]:
    """Layers built inside compute each token's bits alike in every batch, on CUDA."""
    token = _is_deterministic.set(True)
    try:
        yield
    finally:
        _is_deterministic.reset(token)


def current_ops() -> Ops:
    """The operations of torch's default device: the one that the layers being built will live on."""
    return _ops_for(torch.get_default_device().type, _is_deterministic.get())


@cache
def _ops_for(device_type: str, deterministic: bool) -> Ops:
    if device_type == "cuda" and deterministic:
        from descant_engine.layers.deterministic_ops import DeterministicCudaOps

        return DeterministicCudaOps()
    if device_type == "cuda":
        from descant_engine.layers.cuda_ops import CudaOps

        return CudaOps()
    from descant_engine.layers.cpu_ops import CpuOps

    return CpuOps()
